"""Algorithm 1: its state, and one iteration of it as a pure function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from ._augment import as_augmentation
from ._checks import ArgumentError
from ._coreset import Coreset
from ._pool import Member, choose, get_member, new_pool, set_member, visit
from ._recipe import Recipe, check_optimizer, updated
from ._types import PyTree
from .bilevel import Hypergradient
from .models import AbstractNetwork, with_statistics
from .parameterizations import check_parameterization

Batch = tuple[Float[Array, "b *shape"], Integer[Array, " b"]]


class State(eqx.Module):
    """Everything that changes: one pytree.

    - `psi`: ψ, a `Coreset`, or what the recipe's parameterization has in its place.
    - `average`: the averaged ψ. Not an average of decoded sets, so that what a run returns is a
      set that ψ's few numbers stand for.
    - `opt_state`: the optimizer's.
    - `pool`: the partly trained networks, stacked.
    - `key`: the source of this run's randomness; every step derives its own from it.
    - `step`: iterations done.
    - `raises`: how many times λ is raised at present, after steps that were rejected.
    - `recipe`: the strategies, with the rates that an adaptive method has come to.
    """

    psi: PyTree
    average: PyTree
    opt_state: PyTree
    pool: Member
    key: PRNGKeyArray
    step: Int[Array, ""]
    raises: Int[Array, ""]
    recipe: Recipe


def init(coreset: Coreset, recipe: Recipe, *, key: PRNGKeyArray) -> State:
    """The state before the first step: a pool of fresh networks around a starting ψ.

    Raises `ValueError` for a recipe without a method or a model, as only `distill` has defaults,
    and for one whose `flip` is not that of the coreset.
    """
    _, make_model = recipe.chosen()
    if recipe.flip not in (None, coreset.flip):
        raise ArgumentError("flip", f"is {recipe.flip} in the recipe, and not so of the coreset.")
    pool_key, run_key = jr.split(key)
    coreset = eqx.tree_at(lambda c: c.preprocess, coreset, None, is_leaf=lambda x: x is None)
    dtype = coreset.labels.dtype
    coreset = jax.tree.map(lambda x: x if eqx.is_array(x) else jnp.asarray(x, dtype), coreset)
    check_parameterization(recipe.parameterization, coreset)
    augment = as_augmentation(recipe.augment, coreset.images.shape[1:])
    recipe = dataclasses.replace(recipe, augment=augment)
    psi = recipe.parameterization.encode(coreset)
    check_optimizer(recipe.optimizer, psi)

    def copy(tree: PyTree) -> PyTree:  # what the caller has stays the caller's
        return jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, tree)

    return State(
        copy(psi),
        copy(psi),
        copy(recipe.optimizer.init(psi)),
        new_pool(make_model, recipe.pool, key=pool_key),
        run_key,
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        copy(recipe),
    )


class Drawn(NamedTuple):
    """What a step works on: a network of the pool and its place, keys, the outer batch."""

    place: Int[Array, "..."]
    member: Member
    key: PRNGKeyArray
    visit_key: PRNGKeyArray
    augment_key: PRNGKeyArray
    inputs: Float[Array, "b *shape"]
    targets: Float[Array, "b classes"]


class Moved(NamedTuple):
    """The network as it is to be visited, its hypergradient, and ψ after the update."""

    member: Member
    result: Hypergradient
    psi: PyTree
    opt_state: PyTree


def draw(state: State, batch: Batch) -> Drawn:
    """A random network of the pool, or several where the recipe's pool asks for several a step."""
    inputs, labels = batch
    step_key = jr.fold_in(state.key, state.step)
    index_key, key, visit_key = jr.split(step_key, 3)
    augment_key = jr.fold_in(step_key, 3)  # a fourth, which leaves the three what they were
    index = choose(state.recipe.pool, key=index_key)
    classes = state.recipe.parameterization.decode(state.psi).num_classes
    targets = jax.nn.one_hot(labels, classes, dtype=inputs.dtype)
    inputs = state.recipe.augmented(inputs, augment_key)
    return Drawn(index, get_member(state.pool, index), key, visit_key, augment_key, inputs, targets)


def on_set(model: AbstractNetwork, coreset: Coreset) -> AbstractNetwork:
    """The network with the statistics that it has on the distilled set as it is now.

    What it has stored is of an earlier set; a fresh network has stored nothing yet.
    """
    return with_statistics(model, coreset.support()[0])


def move(state: State, drawn: Drawn) -> Moved:
    """ψ moved along the method's hypergradient at one network."""
    recipe, member = state.recipe, drawn.member
    method, _ = recipe.chosen()
    shown = functools.partial(recipe.shown, key=drawn.augment_key)
    coreset, pull_back = jax.vjp(shown, state.psi)
    problem = on_set(member.model, coreset), coreset, drawn.inputs, drawn.targets
    result = method.hypergradient(*problem, key=drawn.key)
    (gradient,) = pull_back(result.gradient)
    psi, opt_state = updated(recipe.optimizer, gradient, state.opt_state, state.psi, result.value)
    return Moved(member, result, psi, opt_state)


def step(
    state: State, batch: Batch, move: Callable[[State, Drawn], Moved] = move
) -> tuple[State, dict[str, Array]]:
    """One iteration of Algorithm 1. Pure and jittable (`equinox.filter_jit`).

    Draws a network from the pool, moves ψ along the method's hypergradient on the outer batch,
    averages it, then trains that network on the new ψ. A network that normalizes by batches is
    differentiated at its statistics on ψ, held fixed, and trained with those of each training step.

    `move` is what gives the new ψ; `run/_guard.py` has one that rejects what is not finite.
    """
    recipe = state.recipe
    method, make_model = recipe.chosen()
    drawn = draw(state, batch)
    member, result, psi, opt_state = move(state, drawn)
    weight = recipe.average(state.step)
    average = jax.tree.map(lambda a, x: a + weight * (x - a), state.average, psi)
    X_S, y_S = recipe.parameterization.decode(psi).support()
    member = visit(member, X_S, y_S, make_model, recipe.pool, key=drawn.visit_key)
    pool = set_member(state.pool, drawn.place, member)
    if method.adapts:
        recipe = eqx.tree_at(lambda r: r.method, recipe, method.adapt(result.stats))
    metrics = {
        "loss": result.value,
        "network": drawn.place,
        "gradient_norm": jnp.linalg.norm(result.gradient.images.ravel()),
        **result.stats,
    }
    moved = {"psi": psi, "average": average, "opt_state": opt_state, "pool": pool}
    return dataclasses.replace(state, **moved, step=state.step + 1, recipe=recipe), metrics
