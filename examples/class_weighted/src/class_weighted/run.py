"""Distill for an outer loss, and train fresh networks on the result."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rcig_eqx import DistillResult, PoolSchedule, Recipe, convnet_for, distill, evaluate, methods
from rcig_eqx.data import Dataset
from rcig_eqx.evaluation import Evaluation

from .losses import WeightedCrossEntropy, cross_entropy


def one_class(data: Dataset, name: str, weight: float) -> Float[Array, " classes"]:
    """Class weights: one class counts `weight` times, the others once."""
    if name not in data.class_names:
        raise ValueError(f"There is no class {name!r}: choose among {', '.join(data.class_names)}.")
    return jnp.ones(data.num_classes).at[data.class_names.index(name)].set(weight)


def distill_weighted(
    train: Dataset,
    weights: Float[Array, " classes"],
    *,
    key: PRNGKeyArray,
    steps: int = 40,
    width: int = 8,
    depth: int = 2,
    progress: bool = True,
) -> DistillResult:
    """One image a class, for networks that minimize the cross-entropy on them.

    That has no closed form: `default_method` sees as much from the type of the inner loss, and
    trains the head by Adam and solves with the Hessian by conjugate gradients.
    """
    return distill(
        train,
        images_per_class=1,
        key=key,
        method=methods.default_method(
            steps, inner_loss=cross_entropy, outer_loss=WeightedCrossEntropy(weights)
        ),
        model=convnet_for(train.image_shape, train.num_classes, width=width, depth=depth),
        steps=steps,
        recipe=Recipe(pool=PoolSchedule(size=5)),
        progress=progress,
    )


def measure(
    result: DistillResult,
    held_out: Dataset,
    *,
    key: PRNGKeyArray,
    networks: int = 5,
    steps: int = 500,
    progress: bool = True,
) -> Evaluation:
    """Fresh networks that minimize the same inner loss, tested: accuracies by class are recalls."""
    return evaluate(
        result,
        held_out,
        key=key,
        baseline=False,
        model=convnet_for(
            held_out.image_shape,
            held_out.num_classes,
            width=result.recipe["model"]["width"],
            depth=result.recipe["model"]["depth"],
            softplus=None,
        ),
        loss=cross_entropy,
        learning_rate=1e-3,
        num_networks=networks,
        steps=steps,
        progress=progress,
    )
