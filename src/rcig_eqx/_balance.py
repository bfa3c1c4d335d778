"""How many images each class has, and what a run makes of it."""

import dataclasses
from typing import Any

import numpy as np

from ._checks import ArgumentError
from .data import AbstractImages, Dataset

_UNEQUAL = 3  # the largest class has more than so many times the images of the smallest


@dataclasses.dataclass(frozen=True)
class Balance:
    """The images of each class that has some.

    - `counts`: by name.
    - `balanced`: whether an outer batch has as many of each class.
    """

    counts: dict[str, int]
    balanced: bool

    @property
    def unequal(self) -> bool:
        """Whether the largest class has more than three times the images of the smallest."""
        return max(self.counts.values()) > _UNEQUAL * min(self.counts.values())

    @property
    def note(self) -> str:
        """What to say before a run of unequal classes; nothing otherwise."""
        if not self.unequal:
            return ""
        most, least = (pick(self.counts, key=self.counts.__getitem__) for pick in (max, min))
        batches = "as many of each class" if self.balanced else "images of all classes alike"
        return (
            f"Classes have {self.counts[least]:,} ({least}) to {self.counts[most]:,} ({most}) "
            f"images: outer batches have {batches}."
        )


def balance(train: Any, seen: Dataset, asked: bool | None) -> Balance:
    """The classes of a training set. `seen` is the part of it in memory, which stands for a grain
    dataset, whose labels are not known: its batches cannot be balanced."""
    known = isinstance(train, Dataset | AbstractImages)
    if asked and not known:
        raise ArgumentError("balanced", "needs a set whose labels are known: pass a Dataset.")
    counts = np.bincount((train if known else seen).labels, minlength=seen.num_classes)
    there = {name: n for name, n in zip(seen.class_names, counts.tolist(), strict=True) if n}
    found = Balance(there, bool(asked))
    return found if asked is not None else Balance(there, known and found.unequal)


def few_images(train: Dataset, images_per_class: int) -> str:
    """What to say where classes have fewer images than are asked for; nothing otherwise."""
    counts = np.bincount(train.labels, minlength=train.num_classes)
    short = [f"{c!r} ({n})" for c, n in zip(train.class_names, counts, strict=True)
             if 0 < n < images_per_class]  # fmt: skip
    if not short:
        return ""
    named = ", ".join(short[:3]) + f" and {len(short) - 3} more" * (len(short) > 3)
    return (
        f"{images_per_class} images of each class were asked for, and there are fewer of {named}: "
        "those there are stand in for the others, again and again."
    )
