"""RaT-BPTT and AT-BPTT: HDF5 with `data` and `label`, or a checkpoint of PyTorch."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ._layout import AbstractLayout, StoredSet, channels_last, needed, part
from ._pytorch import read, to_numpy


class RatBPTT(AbstractLayout):
    """RaT-BPTT and AT-BPTT. Each image is `[c h w]`, or a row of its numbers in this order."""

    names = r".*\.(h5|hdf5|pth)"

    def read(self, path: Path) -> list[StoredSet]:
        images, labels = (_of_checkpoint if path.suffix == ".pth" else _of_hdf5)(path)
        return [StoredSet(channels_last(_square(images)), labels)]


def _square(images: np.ndarray) -> np.ndarray:
    """Rows [n d] as square images: c h h is d for only one h, c being 1 or 3."""
    for channels in (1, 3) if images.ndim == 2 else ():
        side = math.isqrt(images.shape[1] // channels)
        if channels * side**2 == images.shape[1]:
            return images.reshape(-1, channels, side, side)
    return images


def _of_checkpoint(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    content = read(path)
    if "data" in content:
        images, labels = content["data"], content.get("label")
    else:
        images = part(content, "model_state_dict", "module.data.weight")
        labels = content.get("label_state_dict", {}).get("module.label.weight")
    return to_numpy(images), None if labels is None else to_numpy(labels)


def _of_hdf5(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    h5py = needed("h5py", "rcig-eqx[published]")
    with h5py.File(path, "r") as file:
        labels = _array(h5py, file, "label") if file.get("label", getlink=True) else None
        return _array(h5py, file, "data"), labels


def _array(h5py: Any, file: Any, name: str) -> np.ndarray:
    """An array of plain numbers that lie in this very file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"it has no {name} of its own")
    array = file[name]
    if array.external or array.is_virtual or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is no array of numbers, or lies in another file")
    if array.nbytes > 100 * array.id.get_storage_size():
        raise ValueError(f"{name} {list(array.shape)} is larger than what it lies in")
    return array[()]
