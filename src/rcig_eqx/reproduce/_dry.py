"""What a row would take, without running it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._coreset import Coreset, growing_average
from .._memory import estimate_memory
from .._pool import PoolSchedule
from .._step import Recipe, coreset_optimizer, init
from ..methods import AbstractMethod
from ..models import split_parameters
from ._plan import Scale, arguments
from ._rows import Row

_BATCH_SIZE = 64  # of `distill`, where a method has none of its own


def parts_of(
    row: Row, scale: Scale, method: str, normalization: str | None = None
) -> tuple[Recipe, Coreset, int]:
    """The recipe of a run of this row, the shapes of its set, and its outer batch."""
    given: dict[str, Any] = arguments(row, scale, method, normalization)
    facts = row.facts
    coreset = Coreset(
        jax.ShapeDtypeStruct((row.images, *facts.shape), jnp.float32),  # pyright: ignore[reportArgumentType]
        jax.ShapeDtypeStruct((row.images, facts.classes), jnp.float32),  # pyright: ignore[reportArgumentType]
        jax.ShapeDtypeStruct((), jnp.float32),  # pyright: ignore[reportArgumentType]
        flip=row.flip,
    )
    recipe = Recipe(
        given["method"],
        given["model"],
        given.get("optimizer", coreset_optimizer()),
        given.get("pool", PoolSchedule()),
        given.get("average", growing_average()),
    )
    return recipe, coreset, min(given.get("batch_size", _BATCH_SIZE), facts.images)


def dry_run(row: Row, scale: Scale, method: str, *, memory: bool = True) -> dict[str, Any]:
    """Shapes, counts and, unless `memory` is false, the estimated memory of a step.

    The estimate compiles the step, which takes minutes for the largest rows. Either way the whole
    state and one step are traced: a row that could not start raises here.
    """
    if row.float64:
        jax.config.update("jax_enable_x64", True)
    recipe, coreset, batch_size = parts_of(row, scale, method)
    assert isinstance(recipe.method, AbstractMethod)
    model = eqx.filter_eval_shape(recipe.make_model, jr.key(0))
    count = sum(x.size for x in jax.tree.leaves(split_parameters(model)[0]))
    state = eqx.filter_eval_shape(lambda c: init(c, recipe, key=jr.key(0)), coreset)
    return {
        "images": coreset.images.shape,
        "labels": coreset.labels.shape,
        "mirrored": row.flip,
        "parameters": count,
        "outer batch": (batch_size, *row.facts.shape),
        "steps": scale.steps_of(row),
        "state bytes": sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(eqx.filter(state, _is_shape))
        ),
        "memory": str(estimate_memory(recipe, coreset, batch_size)) if memory else None,
    }


def _is_shape(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
