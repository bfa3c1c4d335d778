"""How many distilled images fit into a number of bits."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._coreset import Coreset
from ._parameterization import AbstractParameterization


def bits_of(
    parameterization: AbstractParameterization,
    images_per_class: int,
    shape: tuple[int, ...],
    num_classes: int,
) -> int:
    """The bits that so many images of a shape take, with their labels and all that decodes them."""
    n = images_per_class * num_classes
    sizes = (n, *shape), (n, num_classes), ()
    coreset = Coreset(*(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes))
    return parameterization.bits(eqx.filter_eval_shape(parameterization.encode, coreset))


def images_that_fit(
    parameterization: AbstractParameterization,
    bits_per_class: int,
    shape: tuple[int, ...],
    num_classes: int,
) -> int:
    """The most images per class that take no more bits than this per class; 0 if none fits."""

    def fits(images_per_class: int) -> bool:
        taken = bits_of(parameterization, images_per_class, shape, num_classes)
        return taken <= bits_per_class * num_classes

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
