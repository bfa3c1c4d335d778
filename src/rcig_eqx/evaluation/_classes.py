"""Which class of one set is which of another."""

import dataclasses

import numpy as np
from jaxtyping import Int32

from ..data import AbstractImages, Dataset
from ..data._names import nfc


def match_classes(
    data: Dataset | AbstractImages,
    names: tuple[str, ...] | None,
    count: int,
    *,
    what: str = "the test set",
) -> Int32[np.ndarray, " classes"]:
    """The number that each class of `data` has in a set of `count` classes with these `names`.

    Names are compared in the Unicode form NFC, in any order; `data` may lack some of the classes.
    Where one side has no names of its own (`names` is `None`, or they are "0", "1", ... as of bare
    arrays), the order is taken to be the same, and the number of classes must be. The labels of
    bare arrays need not reach the last class.

    Raises `ValueError`, naming the classes, for a class that is not among `names`.
    """
    there, in_order = data.class_names, np.arange(data.num_classes, dtype=np.int32)
    known = {nfc(name): number for number, name in enumerate(names or ())}
    missing = [name for name in there if nfc(name) not in known]
    if names is not None and not missing:
        by_name = np.array([known[nfc(name)] for name in there], np.int32)
        if _named(there) or np.array_equal(by_name, in_order):
            return by_name
        raise ValueError(
            f"{what} ({data.name}) has classes {_listed(there)}, which may be the distilled "
            f"classes of these names or the first of {_listed(names)}: pass "
            "data.Dataset.from_arrays(images, labels, class_names)."
        )
    named = 0 if names is None else _named(names) + _named(there)
    if named == 2 or (named and len(missing) < len(there)):
        raise ValueError(
            f"{what} ({data.name}) has {_listed(missing)}, not among the distilled classes "
            f"{_listed(names or ())}: pass images of these classes, under these names."
        )
    if len(there) == count or (len(there) < count and not _named(there)):
        return in_order
    raise ValueError(
        f"The distilled set has {count} classes and {what} {len(there)}: pass images of the "
        "classes that were distilled."
    )


def renumbered(data: Dataset, names: tuple[str, ...] | None, count: int, *, what: str) -> Dataset:
    """The same images with the numbers that `match_classes` gives their classes."""
    numbers = match_classes(data, names, count, what=what)
    if names is None or np.array_equal(numbers, np.arange(len(numbers))):
        return data
    return dataclasses.replace(data, labels=numbers[data.labels], class_names=names)


def _named(names: tuple[str, ...]) -> bool:
    """Whether these are names, and not the numbers that classes without names have."""
    return any(name != str(number) for number, name in enumerate(names))


def _listed(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown + f" and {len(names) - 5} more" * (len(names) > 5)
