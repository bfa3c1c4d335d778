"""A storage budget, and what fits into it."""

import bisect
import dataclasses
import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import ArgumentError, check_counts
from .._coreset import Coreset
from .._types import PyTree
from ._compose import Composition, compose
from ._downsampled import Downsampled
from ._label_bits import LabelBits
from ._parameterization import AbstractParameterization
from ._plain import plain
from ._quantized import Quantized


def bits_of(
    parameterization: AbstractParameterization,
    images_per_class: int,
    shape: tuple[int, ...],
    num_classes: int,
) -> int:
    """The bits that so many images of a shape take, with their labels and all that decodes them."""
    n = images_per_class * num_classes

    def encoded(images: Array, labels: Array, log_temperature: Array) -> PyTree:
        return parameterization.encode(Coreset(images, labels, log_temperature))

    sizes = (n, *shape), (n, num_classes), ()
    arrays = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
    return parameterization.bits(eqx.filter_eval_shape(encoded, *arrays))


def images_that_fit(
    parameterization: AbstractParameterization,
    bits_per_class: int,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    at_most: int,
) -> int:
    """The most images per class, up to a number, that take no more bits per class; 0 if none do."""

    def too_many(images_per_class: int) -> bool:
        try:
            taken = bits_of(parameterization, images_per_class, shape, num_classes)
        except ValueError:  # too few for this parameterization, such as for a larger basis
            return False
        return taken > bits_per_class * num_classes

    return bisect.bisect_left(range(1, at_most + 1), True, key=too_many)


@dataclasses.dataclass(frozen=True)
class Bits:
    """A storage budget.

    - `per_class`: bits of each class, for images, labels and all that decodes them.
    """

    per_class: int

    def __post_init__(self) -> None:
        check_counts(per_class=self.per_class)


_SAID = re.compile(r"([\d,_]*\d) (bit|image)s? per class")


def check_storage(storage: str | Bits) -> tuple[int, str]:
    """A number and what it counts, bits or images. `ValueError` for what states no budget."""
    if isinstance(storage, Bits):
        return storage.per_class, "bit"
    said = _SAID.fullmatch(storage.strip())
    count = int(re.sub("[,_]", "", said[1])) if said else 0
    if said is None or count < 1:
        raise ArgumentError(
            "storage",
            f'is {storage!r}: pass "1 image per class", "25408 bits per class" or Bits(25408).',
        )
    return count, said[2]


def bits_allowed(storage: str | Bits, shape: tuple[int, ...], num_classes: int) -> int:
    """Bits per class of a budget: `"25,408 bits per class"`, or as many float32 images with their
    labels as in `"1 image per class"`. Raises `ValueError` for what states none."""
    count, unit = check_storage(storage)
    return count * (32 * (math.prod(shape) + num_classes) if unit == "image" else 1)


def usual(shape: tuple[int, ...], num_classes: int) -> Composition:
    """What a budget is spent on by default: the most accurate of what `benchmarks/storage.py` has
    measured in equal time and storage, 8 and 4 bits, a half and a third of the side. Labels are
    not measured: 8 bits each, and of more than 20 classes the largest five of each image."""
    labels = LabelBits(8, top_k=5 if num_classes > 20 else None)
    smaller = (Downsampled(2),) if len(shape) == 3 else ()
    return compose(*smaller, Quantized(4), labels)


def spend(
    storage: str | Bits,
    given: AbstractParameterization,
    shape: tuple[int, ...],
    num_classes: int,
    available: int,
) -> tuple[AbstractParameterization, int]:
    """How a budget is spent: the parameterization, and the images per class.

    One of your own is kept; in place of plain images comes the usual one. `available` is how many
    real images the smallest class has, which are never exceeded. Raises `ValueError` for a budget
    that holds no image, or too few for the parameterization.
    """
    bits = bits_allowed(storage, shape, num_classes)
    stored = usual(shape, num_classes) if given == plain() else given
    most = max(1, available)  # of a class without images is told where a start is drawn
    count = images_that_fit(stored, bits, shape, num_classes, at_most=most)
    least = bits_of(stored, max(1, count), shape, num_classes)  # complains of too few to encode
    if count < 1:
        least = -(-least // num_classes)
        raise ArgumentError(
            "storage", f"is {bits:,} bits per class, and one image takes {least:,}: pass more."
        )
    return stored, count
