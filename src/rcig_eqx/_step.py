"""One iteration of Algorithm 1: its state, and the pure function that advances it."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray, PyTree

from ._coreset import Coreset
from ._devices import replicate
from ._hypergradient import Hypergradient
from ._pool import (
    MakeModel,
    Member,
    PoolSchedule,
    average_networks,
    draw,
    each_network,
    get_member,
    new_pool,
    set_member,
    visit,
)
from .methods import AbstractAdaptiveMethod, AbstractMethod


class Recipe(eqx.Module):
    """The strategies of a run. Only an adaptive method has arrays, its learning rates.

    - `method`: how the hypergradient is computed.
    - `make_model`: a function from a key to a network.
    - `optimizer`: of the distilled set; its updates are shaped like the `Coreset`.
    - `schedule`: of the pool.
    - `average`: weights of the averaged ψ, such as [`ema`][rcig_eqx.ema].
    """

    method: AbstractMethod
    make_model: MakeModel
    optimizer: optax.GradientTransformation
    schedule: PoolSchedule
    average: Callable[[Array], Array]


class State(eqx.Module):
    """Everything that changes: one pytree.

    - `coreset`: ψ.
    - `average`: the averaged ψ, which is what a run returns.
    - `opt_state`: the optimiser's.
    - `pool`: the partly trained networks, stacked.
    - `key`: the source of this run's randomness; every step derives its own from it.
    - `step`: iterations done.
    - `recipe`: the strategies, with the rates that an adaptive method has come to.
    """

    coreset: Coreset
    average: Coreset
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
    short runs. Either may be an optax schedule.
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
        lambda coreset: eqx.tree_at(where, coreset, ("data", "data", "temperature")),
    )


def init(coreset: Coreset, recipe: Recipe, *, key: PRNGKeyArray) -> State:
    """The state before the first step: a pool of fresh networks around a starting ψ."""
    pool_key, run_key = jr.split(key)
    coreset = eqx.tree_at(lambda c: c.preprocess, coreset, None, is_leaf=lambda x: x is None)
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731  nothing donated twice
    return State(
        copy(coreset),
        copy(coreset),
        recipe.optimizer.init(coreset),  # pyright: ignore[reportArgumentType]
        new_pool(recipe.make_model, recipe.schedule, key=pool_key),
        run_key,
        jnp.zeros((), jnp.int32),
        recipe,
    )


def tune(state: State, batch: tuple[Float[Array, "b h w c"], Integer[Array, " b"]]) -> State:
    """The state with its adaptive method's learning rates found (paper, appendix C).

    On the (first) network and the batch that the next `step` would take; other methods are left
    alone. Pure and jittable (`equinox.filter_jit`). `distill` does this before its first step.
    """
    method = state.recipe.method
    if not isinstance(method, AbstractAdaptiveMethod):
        return state
    _, member, _, images, targets = _draw(state, batch)
    if state.recipe.schedule.networks_per_step > 1:
        member = get_member(member, jnp.zeros((), jnp.int32))
    tuned = method.tune(member.model, state.coreset, images, targets)
    return replicate(eqx.tree_at(lambda s: s.recipe.method, state, tuned))


def _draw(state: State, batch: tuple[Array, Array]):
    """What a step works on: network(s) of the pool with their index, two keys, the outer batch."""
    images, labels = batch
    index_key, *keys = jr.split(jr.fold_in(state.key, state.step), 3)
    index = draw(state.recipe.schedule, key=index_key)
    targets = jax.nn.one_hot(labels, state.coreset.num_classes, dtype=images.dtype)
    return index, get_member(state.pool, index), keys, images, targets


def step(
    state: State, batch: tuple[Float[Array, "b h w c"], Integer[Array, " b"]]
) -> tuple[State, dict[str, Array]]:
    """One iteration of Algorithm 1. Pure and jittable (`equinox.filter_jit`).

    Draws a network from the pool, moves ψ along the method's hypergradient on the outer batch,
    averages it, then trains that network on the new ψ. A hypergradient that is not finite is
    rejected: ψ stays, and the network that gave it is replaced. Of several networks a step
    (`PoolSchedule.networks_per_step`) the hypergradients are averaged, and one that is not finite
    is left out.

    **Arguments:** the state, and a batch of preprocessed images and integer labels.

    **Returns:** the next state, and metrics: `loss`, `gradient_norm` (of the images), `rejected`,
    and the method's own, such as `accuracy`, `iterations` and `residual`.
    """
    recipe = state.recipe
    index, member, (key, visit_key), images, targets = _draw(state, batch)

    def at(member: Member, key: PRNGKeyArray) -> tuple[Hypergradient, Bool[Array, ""]]:
        result = recipe.method.hypergradient(member.model, state.coreset, images, targets, key=key)
        matters = jax.tree.leaves((result.value, result.gradient))
        return result, jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in matters]))

    result, sound = each_network(at, member, recipe.schedule, key=key)
    if recipe.schedule.networks_per_step > 1:
        result = average_networks(result, sound)
    finite = jnp.any(sound)
    if isinstance(recipe.method, AbstractAdaptiveMethod):
        adapted = recipe.method.adapt(result.stats)
        recipe = eqx.tree_at(lambda r: r.method, recipe, adapted)
    updates, opt_state = recipe.optimizer.update(
        result.gradient,
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
    age = jnp.where(sound, member.age, recipe.schedule.max_steps)
    member = Member(member.model, member.opt_state, age)
    X_S, y_S = coreset.support()

    def train(member: Member, key: PRNGKeyArray) -> Member:
        return visit(member, X_S, y_S, recipe.make_model, recipe.schedule, key=key)

    member = each_network(train, member, recipe.schedule, key=visit_key)
    metrics = {
        "loss": result.value,
        "rejected": ~finite,
        "gradient_norm": jnp.linalg.norm(result.gradient.images.ravel()),
        **result.stats,
    }
    pool = set_member(state.pool, index, replicate(member))
    state = State(coreset, average, opt_state, pool, state.key, state.step + 1, recipe)
    return replicate((state, metrics))
