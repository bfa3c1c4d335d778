"""The pool of partly trained networks that the distilled set is fitted to."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._subsample import in_chunks
from ._types import PyTree
from .models import AbstractNetwork

MakeModel = Callable[[PRNGKeyArray], AbstractNetwork]


class PoolSchedule(eqx.Module):
    """How the pool's networks are trained and replaced (paper, section 3.3).

    - `size`: networks in the pool.
    - `max_steps`: a network is made anew once it has been trained for this many steps.
    - `min_visit`, `max_visit`: a visited network is trained for a uniformly random number of
      steps between the two. The paper's is one; the authors' code takes 1 to 15. The default's 1
      to 3 cost less than the hypergradient beside them.
    - `learning_rate`: Adam's, on the mean-squared error of the current distilled set, with the
      network's own (not linearised) dynamics. The authors' code has 5e-5; the default's networks
      learn more features within their 100 steps, and the distilled sets are better for it.
    """

    size: int = 30
    max_steps: int = 100
    min_visit: int = 1
    max_visit: int = 3
    learning_rate: float = 3e-4

    def __check_init__(self) -> None:
        if self.size < 1 or self.max_steps < 1:
            raise ValueError("A pool needs size and max_steps of at least 1.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive.")
        if not 0 <= self.min_visit <= self.max_visit:
            raise ValueError(
                f"0 <= min_visit <= max_visit must hold; got {self.min_visit}, {self.max_visit}."
            )

    def optimizer(self) -> optax.GradientTransformation:
        """Adam at the pool's learning rate."""
        return optax.adam(self.learning_rate)


class Member(eqx.Module):
    """One network of the pool, with its optimiser's state and the steps it has had.

    The pool itself is the same pytree with a leading axis on every array.
    """

    model: AbstractNetwork
    opt_state: PyTree
    age: Int[Array, "..."]


def new_member(make_model: MakeModel, schedule: PoolSchedule, *, key: PRNGKeyArray) -> Member:
    """A freshly initialised network."""
    model = make_model(key)
    opt_state = schedule.optimizer().init(eqx.filter(model, eqx.is_inexact_array))
    return Member(model, opt_state, jnp.zeros((), jnp.int32))


def new_pool(make_model: MakeModel, schedule: PoolSchedule, *, key: PRNGKeyArray) -> Member:
    """`schedule.size` fresh networks, stacked."""
    make = lambda k: new_member(make_model, schedule, key=k)  # noqa: E731
    return eqx.filter_vmap(make)(jr.split(key, schedule.size))


def get_member(pool: Member, index: Int[Array, ""]) -> Member:
    """The network at `index`."""
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, pool)


def set_member(pool: Member, index: Int[Array, ""], member: Member) -> Member:
    """The pool with the network at `index` replaced; in place where the pool is donated."""
    put = lambda x, y: x.at[index].set(y) if eqx.is_array(x) else x  # noqa: E731
    return jax.tree.map(put, pool, member)


def train_member(
    member: Member,
    images: Float[Array, "n h w c"],
    labels: Float[Array, "n classes"],
    steps: Int[Array, ""] | int,
    schedule: PoolSchedule,
) -> Member:
    """Train a network on the distilled set for `steps` full-batch steps (Algorithm 1)."""
    optimizer = schedule.optimizer()
    parameters, static = eqx.partition(member.model, eqx.is_inexact_array)

    def loss(parameters: PyTree) -> Array:
        errors = in_chunks(eqx.combine(parameters, static), images) - labels
        return jnp.mean(jnp.sum(errors**2, axis=-1))

    def step(_, carry):
        parameters, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(parameters), opt_state)
        return optax.apply_updates(parameters, updates), opt_state

    parameters, opt_state = jax.lax.fori_loop(0, steps, step, (parameters, member.opt_state))
    return Member(eqx.combine(parameters, static), opt_state, member.age + steps)


def visit(
    member: Member,
    images: Float[Array, "n h w c"],
    labels: Float[Array, "n classes"],
    make_model: MakeModel,
    schedule: PoolSchedule,
    *,
    key: PRNGKeyArray,
) -> Member:
    """Train a visited network on, and replace it once it is old (Algorithm 1, last two lines)."""
    steps_key, fresh_key = jr.split(key)
    steps = jr.randint(steps_key, (), schedule.min_visit, schedule.max_visit + 1, jnp.int32)
    member = train_member(member, images, labels, steps, schedule)
    fresh = new_member(make_model, schedule, key=fresh_key)
    old = member.age >= schedule.max_steps
    return jax.tree.map(
        lambda new, kept: jnp.where(old, new, kept) if eqx.is_array(new) else kept, fresh, member
    )
