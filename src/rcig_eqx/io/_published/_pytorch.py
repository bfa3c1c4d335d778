"""Files of PyTorch: DC, DSA and DM; MTT and DATM; DD-Ranking; NCFM. Images are `[n c h w]`."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ._layout import (
    AbstractLayout,
    StoredSet,
    channels_last,
    check_size,
    check_version,
    needed,
    part,
)

_OLDEST = "2.10"  # in earlier ones a file can run code all the same: CVE-2026-24747
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONSTANTS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": _IMAGENET,
    "imagenette": _IMAGENET,
    "imagewoof": _IMAGENET,
}
"""Mean and standard deviation of pixels as the authors of DC have them, by data set."""


def pytorch() -> Any:
    """The module `torch`, or `ImportError` if it is lacking or too old for untrusted files."""
    torch = needed("torch", f"torch>={_OLDEST}")
    check_version("PyTorch", torch, _OLDEST)
    return torch


def read(path: Path) -> Any:
    """What a file holds: numbers, text, tensors, and lists and dictionaries of them."""
    torch = pytorch()
    check_size(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more bytes than it has")
    scalar = np.float64(0).__reduce__()[0]  # accuracies of DC are NumPy's numbers
    known = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*known, *dtypes]):
            warnings.simplefilter("ignore")  # of protocols of pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than numbers, text and tensors, or is cut off") from error


def to_numpy(tensor: Any) -> np.ndarray:
    """The numbers of a tensor, floats as float32. `ValueError` for anything else."""
    if not isinstance(tensor, pytorch().Tensor):
        raise ValueError(f"a {type(tensor).__name__} stands where a tensor is expected")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor {list(tensor.shape)} is larger than what it lies in")
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _pair(images: Any, labels: Any) -> StoredSet:
    return StoredSet(channels_last(to_numpy(images)), to_numpy(labels))


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    pytorch().save(value, file)
    return file.getvalue()


class DC(AbstractLayout):
    """DC, DSA and DM: a list `data` of the [images, labels] of all experiments."""

    names = r".*\.pt"
    constants = CONSTANTS

    def read(self, path: Path) -> list[StoredSet]:
        return [_pair(images, labels) for images, labels in part(read(path), "data")]

    def files(self, images, labels, learning_rate):
        set_ = [pytorch().from_numpy(array) for array in (images, labels)]
        return {"res.pt": _saved({"data": [set_], "accs_all_exps": {}})}


class NCFM(AbstractLayout):
    """NCFM: [images, labels]. The images are pixels."""

    names = r"data_.*\.pt"
    pixels = r".*"

    def read(self, path: Path) -> list[StoredSet]:
        images, labels = read(path)
        return [_pair(images, labels)]


class _Separate(AbstractLayout):
    """A file of the images, one of the labels, and one of the learning rate, which may be lacking.
    What follows "images" in their names is a suffix of the others."""

    tells_rate = True
    suffix: str = ""

    def read(self, path: Path) -> list[StoredSet]:
        suffix = path.name.removeprefix("images").removeprefix("_zca")
        labels, rate = (path.with_name(f"{name}{suffix}") for name in ("labels", "lr"))
        return [
            StoredSet(
                channels_last(to_numpy(read(path))),
                to_numpy(read(labels)) if labels.exists() else None,
                learning_rate=float(read(rate)) if rate.exists() else None,
            )
        ]

    def files(self, images, labels, learning_rate):
        parts = {"images": images, "labels": labels}
        parts |= {} if learning_rate is None else {"lr": np.array(learning_rate, np.float32)}
        return {
            f"{name}{self.suffix}.pt": _saved(pytorch().from_numpy(array))
            for name, array in parts.items()
        }


class MTT(_Separate):
    """MTT and DATM: `images_best.pt`, `labels_best.pt` and, of DATM, `lr_best.pt`.

    Those of an iteration have its number in place of `best`. `images_zca_500.pt` has the images of
    `images_500.pt` with the whitening undone: pixels. The constants of CIFAR-100 are CIFAR-10's.
    """

    names = r"images_.*\.pt"
    pixels = unbounded = r"images_zca_.*\.pt"
    constants = CONSTANTS | {"cifar100": CONSTANTS["cifar10"]}
    suffix = "_best"


class DDRanking(_Separate):
    """DD-Ranking: `images.pt` and, if there are any, `labels.pt` and `lr.pt`."""

    names = r"images\.pt"
    constants = CONSTANTS
