"""The guarded step as a run calls it, compiled, and the search for learning rates before it."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .._algorithm import Batch, State, draw, on_set
from .._backend import compiler_options
from .._pool import get_member
from .._sharding import replicate
from ._guard import step


def tune(state: State, batch: Batch) -> State:
    """The state with its adaptive method's learning rates found (paper, appendix C).

    On the (first) network and the batch that the next `step` would take; other methods are left
    alone. Pure and jittable (`equinox.filter_jit`). `distill` does this before its first step.
    """
    method, _ = state.recipe.chosen()
    if not method.adapts:
        return state
    drawn = draw(state, batch)
    member = drawn.member
    if state.recipe.pool.networks_per_step > 1:
        member = get_member(member, jnp.zeros((), jnp.int32))
    coreset = state.recipe.shown(state.psi, drawn.augment_key)
    tuned = method.tune(on_set(member.model, coreset), coreset, drawn.inputs, drawn.targets)
    return replicate(eqx.tree_at(lambda s: s.recipe.method, state, tuned))


def tuned_structure(state: State, batch: Any) -> State:
    """The state with an adaptive method's arrays, or their shapes, as a run has them once tuned."""
    if not state.recipe.chosen()[0].adapts:
        return state
    tuned = eqx.filter_eval_shape(tune, state, batch).recipe.method
    return eqx.tree_at(lambda s: s.recipe.method, state, tuned)


@functools.cache  # so that a second run with the very same strategies compiles nothing
def compiled_step() -> Any:
    """`step`, batch first, jitted for the backend; the state's memory is taken over."""
    return _compiled(lambda batch, state: step(state, batch))


@functools.cache
def compiled_tune() -> Any:
    """`tune`, batch first, likewise."""
    return _compiled(lambda batch, state: tune(state, batch))


def _compiled(function: Callable) -> Any:
    return eqx.filter_jit(
        function,
        donate="all-except-first",
        compiler_options=compiler_options(),  # pyright: ignore[reportCallIssue]
    )
