"""What a row would take, without running it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._coreset import Coreset
from .._recipe import Recipe
from ..models import split_parameters
from ..run._memory import estimate_memory
from ._plan import arguments
from ._rows import Row
from ._workshop import Workshop


def parts_of(
    row: Row, workshop: Workshop, *, method: str | None = None, normalization: str | None = None
) -> tuple[Recipe, Coreset, int]:
    """The recipe of a run of this row, the shapes of its set, and its outer batch."""
    method, facts = method or workshop.method, row.facts
    given = arguments(row, workshop.scale, method, workshop.settings, normalization)
    coreset = eqx.filter_eval_shape(
        lambda: Coreset(
            jnp.zeros((row.images, *facts.shape), jnp.float32),
            jnp.zeros((row.images, facts.classes), jnp.float32),
            jnp.zeros((), jnp.float32),
            flip=row.flip,
        )
    )
    recipe = dataclasses.replace(given["recipe"], model=given["model"])
    return recipe, coreset, min(given["batch_size"], facts.images)


def dry_run(row: Row, workshop: Workshop, **how: Any) -> dict[str, Any]:
    """Shapes, counts, and the memory of a step.

    `how` is another `method` or `normalization` than the workshop's and the row's. The step is
    traced and compiled, which takes minutes for the largest rows: one that could not start raises
    here.
    """
    with jax.enable_x64(row.float64):
        recipe, coreset, batch_size = parts_of(row, workshop, **how)
        fresh = lambda k: split_parameters(recipe.chosen()[1](k))[0]  # noqa: E731
        parameters = eqx.filter_eval_shape(fresh, jr.key(0))
        memory = estimate_memory(recipe, coreset, batch_size)
    return {
        "images": coreset.images.shape,
        "labels": coreset.labels.shape,
        "mirrored": row.flip,
        "parameters": sum(x.size for x in jax.tree.leaves(parameters)),
        "outer batch": (batch_size, *row.facts.shape),
        "method": workshop.scale.method(row, how.get("method", workshop.method)),
        "steps": workshop.scale.steps_of(row),
        "memory": str(memory),
    }
