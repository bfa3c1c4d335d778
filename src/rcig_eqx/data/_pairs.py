"""Sets that give (image, label) pairs by number: those of PyTorch, and lists of pairs."""

from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Shaped

from ._arrays import is_tensor
from ._dataset import Dataset
from ._images import AbstractImages


def yields_pairs(value: Any) -> bool:
    """Whether it is a map-style data set of PyTorch, or like one, or a list of pairs."""
    ours = AbstractImages | Dataset | grain.MapDataset
    if isinstance(value, ours | Mapping | str | bytes | tuple | np.ndarray) or is_tensor(value):
        return False
    if not (hasattr(value, "__getitem__") and hasattr(value, "__len__")):
        return False
    if _is_of_torch(value):
        return True
    try:
        first = value[0]
    except Exception:  # whatever it is, it is not known by numbers
        return False
    return isinstance(first, tuple | list) and len(first) == 2


def is_loader(value: Any) -> bool:
    """Whether it is a `DataLoader` of PyTorch: its data set is what is distilled."""
    return hasattr(value, "dataset") and hasattr(value, "batch_sampler")


def name_of_pairs(value: Any) -> str:
    """What a data set is called, or the one it is a part of: its class; a list has no name."""
    return "custom" if isinstance(value, list) else type(getattr(value, "dataset", value)).__name__


def class_names_of_pairs(value: Any) -> Any:
    """The names that data sets of torchvision keep in `classes`, and parts of them too."""
    return getattr(value, "classes", None) or getattr(
        getattr(value, "dataset", None), "classes", None
    )


def labels_of_pairs(value: Any, label: int) -> Shaped[np.ndarray, "..."]:
    """The labels, as numbers or text: those a data set keeps apart, if they are those it gives.

    Otherwise every pair is read once.
    """
    known, count = _kept(value), len(value)
    some = {0, count // 2, count - 1}
    if known is None or any(_plain(value[i][label]) != _plain(known[i]) for i in some):
        known = [value[i][label] for i in range(count)]
    return np.asarray([_plain(x) for x in known])


def _kept(value: Any) -> Any:
    """The labels that a data set of torchvision keeps, or a part of one, if any."""
    found: Any = next((getattr(value, x) for x in ("targets", "labels") if hasattr(value, x)), None)
    if found is None and hasattr(value, "dataset") and hasattr(value, "indices"):
        of_whole = _kept(value.dataset)
        found = None if of_whole is None else [of_whole[i] for i in value.indices]
    return found if _has_items(found, len(value)) else None


def _has_items(value: Any, count: int) -> bool:
    """Whether it is so many values by number."""
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and len(value) == count


def _plain(label: Any) -> Any:
    """A number as Python has it; a row of numbers as a list, which is refused by name later."""
    return label.tolist() if hasattr(label, "tolist") else label


def _is_of_torch(value: Any) -> bool:
    return any(kind.__module__.startswith("torch.utils.data") for kind in type(value).__mro__)
