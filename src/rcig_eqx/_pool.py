"""The pool of partly trained networks that the distilled set is fitted to."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._checks import check_counts, check_number
from ._sharding import NETWORK, replicate, split
from ._subsample import in_chunks
from ._types import PyTree
from .models import AbstractNetwork, MakeModel, split_parameters
from .models._training import (
    has_statistics,
    running_rate,
    split_for_training,
    training_outputs,
    training_step,
)

T = TypeVar("T")


class PoolSchedule(eqx.Module):
    """How the pool's networks are trained and replaced (paper, section 3.3).

    - `size`: networks in the pool.
    - `max_steps`: a network is made anew once it has been trained for this many steps.
    - `min_visit`, `max_visit`: a visited network is trained for a uniformly random number of
      steps between the two. The paper's is one; the authors' code takes 1 to 15. The default's 1
      to 3 cost less than the hypergradient beside them.
    - `learning_rate`: Adam's, on the mean-squared error of the current distilled set, with the
      network's own (not linearized) dynamics. The authors' code has 5e-5; the default's networks
      learn more features within their 100 steps, and the distilled sets are better for it.
    - `networks_per_step`: different networks that a step's hypergradient is averaged over, each
      visited afterwards. The paper's is one. Several are worked on side by side, on several
      devices where `distill` has them, and take as much more memory where it has not.
    - `batch_size`: random distilled images, mirrored ones counted, of each of these training steps.
      `None`: all of them, as in the paper.
    """

    size: int = 30
    max_steps: int = 100
    min_visit: int = 1
    max_visit: int = 3
    learning_rate: float = 3e-4
    networks_per_step: int = 1
    batch_size: int | None = None

    def __check_init__(self) -> None:
        check_counts(size=self.size, max_steps=self.max_steps)
        if self.batch_size is not None:
            check_counts(batch_size=self.batch_size)
        check_number("learning_rate", self.learning_rate, lambda rate: rate > 0, "positive")
        if not 0 <= self.min_visit <= self.max_visit:
            raise ValueError(
                f"0 <= min_visit <= max_visit must hold; got {self.min_visit}, {self.max_visit}."
            )
        if not 1 <= self.networks_per_step <= self.size:
            raise ValueError(
                f"networks_per_step is {self.networks_per_step}: choose it in 1..{self.size}, the "
                "size of the pool, or a larger size."
            )

    def optimizer(self) -> optax.GradientTransformation:
        """Adam at the pool's learning rate."""
        return optax.adam(self.learning_rate)


class Member(eqx.Module):
    """One network of the pool, with its optimizer's state and the steps it has had.

    The pool itself is the same pytree with a leading axis on every array.
    """

    model: AbstractNetwork
    opt_state: PyTree
    age: Int[Array, "..."]


def new_member(make_model: MakeModel, schedule: PoolSchedule, *, key: PRNGKeyArray) -> Member:
    """A freshly initialized network."""
    model = make_model(key)
    opt_state = schedule.optimizer().init(split_parameters(model)[0])
    return Member(model, opt_state, jnp.zeros((), jnp.int32))


def new_pool(make_model: MakeModel, schedule: PoolSchedule, *, key: PRNGKeyArray) -> Member:
    """`schedule.size` fresh networks, stacked."""
    keys = jr.split(key, schedule.size)
    return eqx.filter_vmap(lambda k: new_member(make_model, schedule, key=k))(keys)


def choose(schedule: PoolSchedule, *, key: PRNGKeyArray) -> Int[Array, "..."]:
    """The index of a random network, or those of `networks_per_step` different ones."""
    if schedule.networks_per_step == 1:
        return jr.randint(key, (), 0, schedule.size)
    return jr.choice(key, schedule.size, (schedule.networks_per_step,), replace=False)


def get_member(pool: T, index: Int[Array, "..."]) -> T:
    """The network at `index` of a stacked pytree, or the networks there, stacked."""
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, pool)


def set_member(pool: Member, index: Int[Array, "..."], member: Member) -> Member:
    """The pool with what is at `index` replaced; in place where the pool is donated."""
    return jax.tree.map(
        lambda x, y: x.at[index].set(y) if eqx.is_array(x) else x, pool, replicate(member)
    )


def each_network(
    function: Callable[[Member, PRNGKeyArray], T],
    member: Member,
    schedule: PoolSchedule,
    *,
    key: PRNGKeyArray,
) -> T:
    """function(member, key) of one network, or of each of several: then with a leading axis.

    Several are divided over the devices of the present mesh, if there is one.
    """
    if schedule.networks_per_step == 1:
        return function(member, key)
    each = split(NETWORK, (member, jr.split(key, schedule.networks_per_step)))
    return split(NETWORK, eqx.filter_vmap(function)(*each))


def train_member(
    member: Member,
    inputs: Float[Array, "n *shape"],
    labels: Float[Array, "n classes"],
    steps: Int[Array, ""] | int,
    schedule: PoolSchedule,
    *,
    key: PRNGKeyArray | None = None,
) -> Member:
    """Train a network on the distilled set for `steps` steps (Algorithm 1).

    Each step takes the whole set, or with a `key` a random `schedule.batch_size` of a larger one.
    A network that normalizes by batches takes them as one batch, without chunks.
    """
    size = schedule.batch_size or len(inputs)
    optimizer = schedule.optimizer()
    whole = has_statistics(member.model)
    parameters, stored, static = split_for_training(member.model)

    def step(i, carry):
        X, y = inputs, labels
        if key is not None and size < len(inputs):
            chosen = jr.choice(jr.fold_in(key, i), len(X), (size,), replace=False)
            X, y = X[chosen], y[chosen]

        def loss(parameters: PyTree, stored: PyTree) -> tuple[Array, tuple[PyTree, None]]:
            model = eqx.combine(parameters, stored, static)
            if whole:
                outputs, model = training_outputs(model, X, rate=running_rate(member.age + i))
            else:
                outputs = in_chunks(model, X)
            value = jnp.mean(jnp.sum((outputs - y) ** 2, axis=-1))
            return value, (split_for_training(model)[1], None)

        return training_step(loss, optimizer, *carry)[0]

    start = (parameters, stored, member.opt_state)
    parameters, stored, opt_state = jax.lax.fori_loop(0, steps, step, start)
    return Member(eqx.combine(parameters, stored, static), opt_state, member.age + steps)


def visit(
    member: Member,
    inputs: Float[Array, "n *shape"],
    labels: Float[Array, "n classes"],
    make_model: MakeModel,
    schedule: PoolSchedule,
    *,
    key: PRNGKeyArray,
) -> Member:
    """Train a visited network on, and replace it once it is old (Algorithm 1, last two lines).

    Of several, each.
    """

    def one(member: Member, key: PRNGKeyArray) -> Member:
        steps_key, fresh_key = jr.split(key)
        steps = jr.randint(steps_key, (), schedule.min_visit, schedule.max_visit + 1, jnp.int32)
        member = train_member(
            member, inputs, labels, steps, schedule, key=jr.fold_in(steps_key, 2**31)
        )
        fresh = new_member(make_model, schedule, key=fresh_key)
        old = member.age >= schedule.max_steps
        return jax.tree.map(
            lambda new, kept: jnp.where(old, new, kept) if eqx.is_array(new) else kept,
            fresh,
            member,
        )

    return each_network(one, member, schedule, key=key)
