"""Sets of other libraries, Hugging Face `datasets` and TFDS, as sets on disk of this one."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from ._arrays import numbered, plain_array
from ._dataset import DataError, Dataset
from ._images import AbstractImages
from ._names import class_names_of
from ._resize import check_channels, check_size, decode, resize, with_channels

_IMAGES, _LABELS = ("image", "img", "images"), ("label", "labels", "fine_label")


@runtime_checkable
class Examples(Protocol):
    """What is common to Hugging Face datasets and TFDS data sources: numbered examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


def adapt(
    dataset: Examples,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    image: str | None = None,
    label: str | None = None,
    name: str | None = None,
) -> AbstractImages:
    """A Hugging Face `datasets.Dataset`, or a TFDS data source, as a labeled set on disk.

    `distill`, `evaluate`, `stream` and `write_records` take these as they are; `adapt` is for what
    needs saying.

    **Arguments:**

    - `dataset`: one split, with `features` that name an image and a label, which is a class number
        or text:
        `datasets.load_dataset(…, split="train")` or `tfds.data_source(…, split="train")`. Neither
        library is imported here; the extras `hf` and `tfds` install them.
    - `size`: the middle square of every image at so many pixels; as they are if `None`.
    - `channels`: 1 reads every image as gray, 3 as RGB; by default, what the first image is.
        Encoded images are read as [`ImageFolder`][rcig_eqx.data.ImageFolder] reads them.
    - `image`, `label`: the names of the two; by default "image" or "img", and "label".
    - `name`: what to call it; by default what it calls itself.

    Class names are those of the label's feature, where it has some, or the sorted distinct labels
    where these are text. The labels of a TFDS source are
    read once from beginning to end, when they are first asked for: it has no columns.
    """
    check_size(size)
    check_channels(channels)
    if not is_foreign(dataset):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}: pass one split of a Hugging Face dataset, or "
            "a TFDS data source."
        )
    return _Adapted(dataset, size, channels, image, label, name)


def is_foreign(value: Any) -> TypeGuard[Examples]:
    """Whether it is a set of another library: numbered examples with features by name."""
    return (
        not isinstance(value, AbstractImages)
        and hasattr(value, "__getitem__")
        and hasattr(value, "__len__")
        and hasattr(_features(value), "keys")
    )


def adapted(value: Any) -> Any:
    """The value, or the set on disk that it is if it is one of another library."""
    return adapt(value) if is_foreign(value) else value


def as_images(value: Any) -> Dataset | AbstractImages:
    """What is labeled images in one of the known forms, as one of two."""
    value = adapted(value)
    if isinstance(value, Dataset | AbstractImages):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return Dataset.from_arrays(*value)
    raise ValueError(
        f"{type(value).__name__} is no labeled set: pass a Dataset, (images, labels), an "
        "ImageFolder, Records, a Hugging Face dataset or a TFDS data source."
    )


class _Adapted(AbstractImages):
    def __init__(
        self,
        dataset: Any,
        size: int | None,
        channels: Literal[1, 3] | None,
        image: str | None,
        label: str | None,
        name: str | None,
    ):
        features = _features(dataset)
        self._dataset, self._size, self._channels = dataset, size, channels
        self._image = _choose(features, "image", image, _IMAGES)
        self._label = _choose(features, "label", label, _LABELS)
        info = getattr(dataset, "info", None) or getattr(dataset, "dataset_info", None)
        known = getattr(info, "dataset_name", None) or getattr(info, "name", None)
        self.name = name or str(known or "custom")
        if not len(dataset):
            raise DataError(f"{self.name} is empty.")
        self.image_shape = self._decode(0).shape
        names = getattr(features[self._label], "names", None)
        count = getattr(features[self._label], "num_classes", None)
        known = names or (map(str, range(count)) if count else None)
        self._names = None if known is None else class_names_of(known)
        seen = self._names or self._numbered[1] or map(str, range(int(self.labels.max()) + 1))
        self.class_names = tuple(seen)

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def labels(self) -> Int32[np.ndarray, " n"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The class number of each image."""
        labels, _ = self._numbered
        if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
            least = f" from {labels.min()}" if labels.dtype.kind in "iuf" else ""
            raise DataError(
                f"{self._label!r} of {self.name} holds {labels.dtype}{least}: it must "
                "be one class number per image, from 0; remove images without a class first."
            )
        return labels.astype(np.int32)

    @cached_property
    def _numbered(self) -> tuple[Shaped[np.ndarray, "..."], tuple[str, ...] | None]:
        """The labels, as numbers if they are text, and the names that this gives."""
        if hasattr(self._dataset, "select_columns"):
            column = self._dataset.select_columns(self._label).with_format("numpy")[:][self._label]
        else:
            column = [self._dataset[i][self._label] for i in range(len(self))]
        return numbered(plain_array(np.asanyarray(column), self._label), self._names)

    @property
    def marks(self) -> list[str]:
        """The fingerprint of a Hugging Face dataset, and the size images are brought to."""
        return [str(getattr(self._dataset, "_fingerprint", "")), f"size {self._size}"]

    def image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of image number `index`."""
        pixels = self._decode(index)
        if pixels.shape[2] == 1 and self.image_shape[2] == 3:  # a gray one among color ones
            pixels = with_channels(pixels, index, 3)
        if pixels.shape != self.image_shape:
            raise DataError(
                f"image {index} of {self.name} is {pixels.shape} and the first "
                f"{self.image_shape}: pass data.adapt(dataset, size=..., channels=...)."
            )
        return pixels

    def _decode(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        where = f"image {index} of {self.name}"
        value = self._dataset[index][self._image]
        if isinstance(value, Mapping):  # of Hugging Face, not decoded: {"bytes", "path"}
            value = value["bytes"] or Path(value["path"]).read_bytes()
        if isinstance(value, bytes) or hasattr(value, "convert"):  # encoded, or a pillow image
            return decode(value, where, channels=self._channels, size=self._size)
        pixels = plain_array(np.asanyarray(value), "image")
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and min(pixels.shape[1:]) > 4:
            pixels = np.moveaxis(pixels, 0, -1)  # as Hugging Face gives tensors of PyTorch
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise DataError(f"{where} is {pixels.dtype} {pixels.shape}, not uint8 [h w c].")
        pixels = with_channels(pixels, where, self._channels)
        return pixels if self._size is None else resize(pixels, self._size)


def _features(value: Any) -> Any:
    features = getattr(value, "features", None)
    if features is None:
        features = getattr(getattr(value, "dataset_info", None), "features", None)
    return features


def _choose(features: Any, what: str, given: str | None, usual: tuple[str, ...]) -> str:
    names = list(features.keys())
    found = next((name for name in ((given,) if given else usual) if name in names), None)
    if found is None:
        missing = f"no {given!r}" if given is not None else f"none of {', '.join(usual)}"
        raise ValueError(
            f"the dataset has {missing}: name its {what} with data.adapt(dataset, {what}=...), of "
            f"{', '.join(names)}."
        )
    return found
