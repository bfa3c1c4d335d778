"""One iteration of Algorithm 1: its state, and the pure function that advances it."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, PyTree

from ._coreset import AbstractParameterization, Coreset
from ._pool import MakeModel, Member, PoolSchedule, get_member, new_pool, set_member, visit
from .methods import AbstractAdaptiveMethod, AbstractMethod


class Recipe(eqx.Module):
    """The strategies of a run. Only an adaptive method has arrays, its learning rates.

    - `method`: how the hypergradient is computed.
    - `make_model`: a function from a key to a network.
    - `optimizer`: of the distilled set; its updates are shaped like the `Coreset`.
    - `schedule`: of the pool.
    - `average`: weights of the averaged ψ, such as [`ema`][rcig_eqx.ema].
    - `parameterization`: what ψ is; `None` where it is the images and labels themselves.
    """

    method: AbstractMethod
    make_model: MakeModel
    optimizer: optax.GradientTransformation
    schedule: PoolSchedule
    average: Callable[[Array], Array]
    parameterization: AbstractParameterization | None = None

    def encode(self, coreset: Coreset) -> PyTree:
        """ψ to start from."""
        return coreset if self.parameterization is None else self.parameterization.encode(coreset)

    def decode(self, psi: PyTree) -> Coreset:
        """The set that ψ stands for."""
        return psi if self.parameterization is None else self.parameterization.decode(psi)

    def decode_vjp(self, psi: PyTree) -> tuple[Coreset, Callable[[Coreset], PyTree]]:
        """The set that ψ stands for, and what takes a gradient in the set to one in ψ."""
        if self.parameterization is None:
            return psi, lambda gradient: gradient
        coreset, transpose = jax.vjp(self.parameterization.decode, psi)
        return coreset, lambda gradient: transpose(gradient)[0]


class State(eqx.Module):
    """Everything that changes: one pytree.

    - `coreset`: ψ, a `Coreset`, or what the recipe's parameterisation has in its place.
    - `average`: the averaged ψ. Not an average of decoded sets, so that what a run returns is a
      set that ψ's few numbers stand for.
    - `opt_state`: the optimiser's.
    - `pool`: the partly trained networks, stacked.
    - `key`: the source of this run's randomness; every step derives its own from it.
    - `step`: iterations done.
    - `recipe`: the strategies, with the rates that an adaptive method has come to.
    """

    coreset: PyTree
    average: PyTree
    opt_state: PyTree
    pool: Member
    key: PRNGKeyArray
    step: Int[Array, ""]
    recipe: Recipe


@functools.cache  # the same strategy object twice is compiled once
def coreset_optimizer(
    learning_rate: optax.ScalarOrSchedule = 0.03,
    temperature_learning_rate: optax.ScalarOrSchedule = 0.03,
) -> optax.GradientTransformation:
    """AdaBelief, with one rate for images and labels and one for log τ (paper, appendix C).

    The paper's rates are 0.003 and 0.03; the default's tenfold larger first one goes further in
    short runs. Either may be an optax schedule. A parameterisation's ψ that is no `Coreset` takes
    the first throughout.
    """
    for rate in (learning_rate, temperature_learning_rate):
        if isinstance(rate, int | float) and rate <= 0:
            raise ValueError(f"A learning rate of {rate} learns nothing: make it positive.")
    where = lambda c: (c.images, c.labels, c.log_temperature)  # noqa: E731
    return optax.partition(
        {
            "data": optax.adabelief(learning_rate),
            "temperature": optax.adabelief(temperature_learning_rate),
        },
        lambda psi: (
            eqx.tree_at(where, psi, ("data", "data", "temperature"))
            if isinstance(psi, Coreset)
            else jax.tree.map(lambda _: "data", psi)
        ),
    )


def init(coreset: Coreset, recipe: Recipe, *, key: PRNGKeyArray) -> State:
    """The state before the first step: a pool of fresh networks around a starting ψ."""
    pool_key, run_key = jr.split(key)
    coreset = eqx.tree_at(lambda c: c.preprocess, coreset, None, is_leaf=lambda x: x is None)
    psi = recipe.encode(coreset)

    def copy(tree: PyTree) -> PyTree:  # nothing donated twice, nor what is the caller's
        return jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, tree)

    return State(
        copy(psi),
        copy(psi),
        copy(recipe.optimizer.init(psi)),  # pyright: ignore[reportArgumentType]
        new_pool(recipe.make_model, recipe.schedule, key=pool_key),
        run_key,
        jnp.zeros((), jnp.int32),
        copy(recipe),
    )


def tune(state: State, batch: tuple[Float[Array, "b h w c"], Integer[Array, " b"]]) -> State:
    """The state with its adaptive method's learning rates found (paper, appendix C).

    On the network and batch that the next `step` would take; other methods are left alone. Pure
    and jittable (`equinox.filter_jit`). `distill` does this before its first step.
    """
    method = state.recipe.method
    if not isinstance(method, AbstractAdaptiveMethod):
        return state
    _, member, _, images, targets = _draw(state, batch)
    coreset = state.recipe.decode(state.coreset)
    tuned = method.tune(member.model, coreset, images, targets)
    return eqx.tree_at(lambda s: s.recipe.method, state, tuned)


def _draw(state: State, batch: tuple[Array, Array]):
    """What a step works on: a network of the pool with its index, two keys, the outer batch."""
    images, labels = batch
    index_key, *keys = jr.split(jr.fold_in(state.key, state.step), 3)
    index = jr.randint(index_key, (), 0, state.recipe.schedule.size)
    classes = state.recipe.decode(state.coreset).num_classes
    targets = jax.nn.one_hot(labels, classes, dtype=images.dtype)
    return index, get_member(state.pool, index), keys, images, targets


def step(
    state: State, batch: tuple[Float[Array, "b h w c"], Integer[Array, " b"]]
) -> tuple[State, dict[str, Array]]:
    """One iteration of Algorithm 1. Pure and jittable (`equinox.filter_jit`).

    Draws a network from the pool, moves ψ along the method's hypergradient on the outer batch,
    averages it, then trains that network on the new ψ. A hypergradient that is not finite is
    rejected: ψ stays, and the network that gave it is replaced.

    **Arguments:** the state, and a batch of preprocessed images and integer labels.

    **Returns:** the next state, and metrics: `loss`, `gradient_norm` (of the images), `rejected`,
    and the method's own, such as `accuracy`, `iterations` and `residual`.
    """
    recipe = state.recipe
    index, member, (key, visit_key), images, targets = _draw(state, batch)
    decoded, pull_back = recipe.decode_vjp(state.coreset)
    result = recipe.method.hypergradient(member.model, decoded, images, targets, key=key)
    gradient = pull_back(result.gradient)
    if isinstance(recipe.method, AbstractAdaptiveMethod):
        adapted = recipe.method.adapt(result.stats)
        recipe = eqx.tree_at(lambda r: r.method, recipe, adapted)
    matters = jax.tree.leaves((result.value, gradient))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in matters]))
    updates, opt_state = recipe.optimizer.update(
        gradient,
        state.opt_state,
        state.coreset,  # pyright: ignore[reportArgumentType]
    )
    coreset = eqx.apply_updates(state.coreset, updates)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    coreset = jax.tree.map(keep, coreset, state.coreset)
    opt_state = jax.tree.map(keep, opt_state, state.opt_state)
    weight = recipe.average(state.step)
    average = jax.tree.map(lambda a, x: a + weight * (x - a), state.average, coreset)

    # A network that gave no finite hypergradient is due for replacement.
    age = jnp.where(finite, member.age, recipe.schedule.max_steps)
    member = Member(member.model, member.opt_state, age)
    X_S, y_S = recipe.decode(coreset).support()
    member = visit(member, X_S, y_S, recipe.make_model, recipe.schedule, key=visit_key)
    metrics = {
        "loss": result.value,
        "rejected": ~finite,
        "gradient_norm": jnp.linalg.norm(result.gradient.images.ravel()),
        **result.stats,
    }
    pool = set_member(state.pool, index, member)
    return State(coreset, average, opt_state, pool, state.key, state.step + 1, recipe), metrics
