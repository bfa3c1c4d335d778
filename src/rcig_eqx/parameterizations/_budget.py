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


_FEW = 500  # distilled images of all classes: of more, ten minutes of one core learn too little


def usual(shape: tuple[int, ...], num_classes: int) -> list[Composition]:
    """What a budget is spent on by default: the first of these that makes it few images, or the
    last. These were the most accurate in equal time and storage (`benchmarks/storage.py`): half the
    side at 4 bits, then at 8, then the whole side; rows of a table, which are not measured, at 4.
    Labels take 8 bits each, and of more than 20 classes the largest five of each image are kept."""
    labels = LabelBits(8, top_k=5 if num_classes > 20 else None)
    if len(shape) != 3:
        return [compose(Quantized(4), labels)]
    half = Downsampled(2)
    stages = (half, Quantized(4)), (half, Quantized(8)), (Quantized(8),)
    return [compose(*each, labels) for each in stages]


def _usual_of(
    bits: int, shape: tuple[int, ...], num_classes: int, available: int
) -> AbstractParameterization:
    """Of the usual ones, that of a budget."""
    *smaller, largest = usual(shape, num_classes)
    few = min(available, max(1, _FEW // num_classes))
    for stored in smaller:
        if images_that_fit(stored, bits, shape, num_classes, at_most=few + 1) <= few:
            return stored
    return largest


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
    most = max(1, available)  # of a class without images is told where a start is drawn
    stored = _usual_of(bits, shape, num_classes, most) if given == plain() else given
    count = images_that_fit(stored, bits, shape, num_classes, at_most=most)
    least = bits_of(stored, max(1, count), shape, num_classes)  # complains of too few to encode
    if count < 1:
        least = -(-least // num_classes)
        raise ArgumentError(
            "storage", f"is {bits:,} bits per class, and one image takes {least:,}: pass more."
        )
    return stored, count
