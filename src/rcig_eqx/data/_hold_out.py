"""A part of every class set aside, to choose, stop and test by."""

from typing import Any, TypeVar, overload

import numpy as np

from .._checks import ArgumentError
from ._adapt import Foreign, as_images
from ._dataset import Dataset
from ._images import AbstractImages

S = TypeVar("S", Dataset, AbstractImages)


@overload
def hold_out(train: S, part: float, *, seed: int) -> tuple[S, S]: ...
@overload
def hold_out(
    train: Foreign, part: float, *, seed: int
) -> tuple[AbstractImages, AbstractImages]: ...
@overload
def hold_out(train: tuple[Any, Any], part: float, *, seed: int) -> tuple[Dataset, Dataset]: ...
def hold_out(train: Any, part: float, *, seed: int) -> tuple[Any, Any]:
    """`train` without a random `part` of each class, and that part, to choose and stop by.

    `train` is in any form that `distill` takes but a grain dataset. A set on disk stays there: no
    image is read. Each class gives one image at least.

    Raises `ValueError` unless each class keeps an image on both sides.
    """
    images = as_images(train)
    if not 0 < part < 1:
        raise ArgumentError("part", f"is {part}: choose a fraction between 0 and 1, such as 0.1.")
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for number, name in enumerate(images.class_names):
        members = np.flatnonzero(images.labels == number)
        count = max(1, round(part * len(members)))
        if not count < len(members):
            raise ArgumentError(
                "part",
                f"is {part}, which of the {len(members)} images of {name!r} leaves none on one "
                "side: choose another part, or add images.",
            )
        held.append(rng.choice(members, count, replace=False))
    chosen = np.sort(np.concatenate(held))
    return images.subset(np.setdiff1d(np.arange(len(images)), chosen)), images.subset(chosen)
