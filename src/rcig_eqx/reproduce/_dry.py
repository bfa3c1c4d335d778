"""What a row would take, without running it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._coreset import Coreset, growing_average
from .._memory import estimate_memory
from .._pool import PoolSchedule
from .._step import Recipe, coreset_optimizer
from ..models import split_parameters
from ._plan import arguments
from ._rows import Row
from ._workshop import Workshop

_BATCH_SIZE = 64  # of `distill`, where a method has none of its own


def parts_of(row: Row, workshop: Workshop) -> tuple[Recipe, Coreset, int]:
    """The recipe of a run of this row, the shapes of its set, and its outer batch."""
    given = arguments(row, workshop.scale, workshop.method, workshop.settings)
    facts = row.facts
    coreset = eqx.filter_eval_shape(
        lambda: Coreset(
            jnp.zeros((row.images, *facts.shape)),
            jnp.zeros((row.images, facts.classes)),
            jnp.zeros(()),
            flip=row.flip,
        )
    )
    recipe = Recipe(
        given["method"],
        given["model"],
        given.get("optimizer", coreset_optimizer()),
        given.get("pool", PoolSchedule()),
        given.get("average", growing_average()),
    )
    return recipe, coreset, min(given.get("batch_size", _BATCH_SIZE), facts.images)


def dry_run(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Shapes, counts, and the memory of a step.

    The step is traced and compiled, which takes minutes for the largest rows: one that could not
    start raises here.
    """
    if row.float64:
        jax.config.update("jax_enable_x64", True)
    recipe, coreset, batch_size = parts_of(row, workshop)
    parameters = eqx.filter_eval_shape(
        lambda k: split_parameters(recipe.make_model(k))[0], jr.key(0)
    )
    count = sum(x.size for x in jax.tree.leaves(parameters))
    return {
        "images": coreset.images.shape,
        "labels": coreset.labels.shape,
        "mirrored": row.flip,
        "parameters": count,
        "outer batch": (batch_size, *row.facts.shape),
        "steps": workshop.scale.steps_of(row),
        "memory": str(estimate_memory(recipe, coreset, batch_size)),
    }
