"""Sets of other libraries, Hugging Face, TFDS and PyTorch, as sets on disk of this one."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Int32, Shaped

from ._arrays import array_of, is_tensor, numbered, plain_array
from ._dataset import DataError, Dataset
from ._images import AbstractImages
from ._names import class_names_of
from ._pairs import class_names_of_pairs, is_loader, labels_of_pairs, name_of_pairs, yields_pairs
from ._resize import check_channels, check_size, decode, resize, with_channels

_IMAGES, _LABELS = ("image", "img", "images"), ("label", "labels", "fine_label")


@runtime_checkable
class Examples(Protocol):
    """What is common to Hugging Face datasets and TFDS data sources: numbered examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


@runtime_checkable
class Loader(Protocol):
    """What of a `DataLoader` is taken: the data set."""

    @property
    def dataset(self) -> Any: ...


Foreign = Examples | Loader


@dataclasses.dataclass(frozen=True)
class _Source:
    """Numbered examples: where an image and a label lie in one, and what is known of all.

    `column(data, label)` has all labels, as numbers or text.
    """

    data: Any
    image: Any
    label: Any
    class_names: Any
    name: str
    column: Callable[[Any, Any], Shaped[np.ndarray, "..."]]


def adapt(
    dataset: Examples,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    image: str | None = None,
    label: str | None = None,
    name: str | None = None,
) -> AbstractImages:
    """A Hugging Face `datasets.Dataset`, a TFDS data source, or a data set of PyTorch, as a labeled
    set on disk.

    `distill`, `evaluate`, `stream` and `write_records` take these as they are; `adapt` is for what
    needs saying.

    **Arguments:**

    - `dataset`: one split, with `features` that name an image and a label, which is a class number
        or text:
        `datasets.load_dataset(…, split="train")` or `tfds.data_source(…, split="train")`; or a
        map-style data set of PyTorch or a list of `(image, label)` pairs. None of these
        libraries is imported here; the extras `hf` and `tfds` install two of them.
    - `size`: the middle square of every image at so many pixels; as they are if `None`.
    - `channels`: 1 reads every image as gray, 3 as RGB; by default, what the first image is.
        Encoded images are read as [`ImageFolder`][rcig_eqx.data.ImageFolder] reads them.
    - `image`, `label`: the names of the two; by default "image" or "img", and "label".
    - `name`: what to call it; by default what it calls itself.

    Images are those of pillow, encoded ones, arrays [h w c] or [h w], or tensors of PyTorch, which
    are [c h w]; uint8, or floats in [0, 1]. Transforms of a data set of PyTorch are applied: leave
    out what is random, and `Normalize`, for which there is `preprocess`. Class names are those of
    the label's feature or the `classes` of torchvision, where there are some, or the sorted
    distinct labels where these are text. The labels of a TFDS source are
    read once from beginning to end, when they are first asked for: it has no columns. So are those
    of a data set of PyTorch, unless it keeps them in `targets` or `labels`.
    """
    check_size(size)
    check_channels(channels)
    if not is_foreign(dataset) or is_loader(dataset) or isinstance(dataset, Mapping):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}: pass one split of a Hugging Face dataset, a "
            "TFDS data source, a PyTorch Dataset or a list of (image, label) pairs."
        )
    return _Adapted(_source(dataset, image, label, name), size, channels)


def is_foreign(value: Any) -> TypeGuard[Foreign]:
    """Whether it is a set of another library: numbered examples with features by name, or pairs; a
    loader of one; or several by the name of their split."""
    if isinstance(value, Mapping):
        return bool(value) and all(_is_split(x) for x in value.values())
    return is_loader(value) or _is_split(value)


def _is_split(value: Any) -> bool:
    return _has_features(value) or yields_pairs(value)


def _has_features(value: Any) -> bool:
    return (
        not isinstance(value, AbstractImages)
        and hasattr(value, "__getitem__")
        and hasattr(value, "__len__")
        and hasattr(_features(value), "keys")
    )


def adapted(value: Any, split: str = "train") -> Any:
    """The value, or the set on disk that it is if it is one of another library.

    Of several splits it is the one of this name, or the only one. `UserWarning` for a loader.
    """
    if not is_foreign(value):
        return value
    one: Any = _chosen(value, split) if isinstance(value, Mapping) else value
    if is_loader(one):
        warnings.warn(
            f"a {type(one).__name__} was passed: its dataset is taken, in batches of our own.",
            stacklevel=2,
        )
        return adapted(one.dataset, split)
    return adapt(one)


_SAME = {"test": ("test", "validation", "valid", "val")}


def _chosen(splits: Mapping[str, Any], split: str) -> Any:
    """One of several splits."""
    for name in _SAME.get(split, (split,)):
        if name in splits:
            return splits[name]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise ValueError(
        f"the data set has no split {split!r}: pass one of its splits, {', '.join(splits)}."
    )


def as_images(value: Any, split: str = "train") -> Dataset | AbstractImages:
    """What is labeled images in one of the known forms, as one of two."""
    value = adapted(value, split)
    if isinstance(value, Dataset | AbstractImages):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return Dataset.from_arrays(*value)
    raise ValueError(
        f"{type(value).__name__} is no labeled set: pass a Dataset, (images, labels), an "
        "ImageFolder, Records, or a data set of Hugging Face, TFDS or PyTorch."
    )


def _source(data: Any, image: str | None, label: str | None, name: str | None) -> _Source:
    """Where the images and labels of a data set lie."""
    if not _has_features(data):
        names, name = class_names_of_pairs(data), name or name_of_pairs(data)
        return _Source(data, 0, 1, names, name, labels_of_pairs)
    features = _features(data)
    image = _choose(features, "image", image, _IMAGES)
    label = _choose(features, "label", label, _LABELS)
    info = getattr(data, "info", None) or getattr(data, "dataset_info", None)
    known = getattr(info, "dataset_name", None) or getattr(info, "name", None)
    names = getattr(features[label], "names", None)
    count = getattr(features[label], "num_classes", None)
    names = names or (map(str, range(count)) if count else None)
    return _Source(data, image, label, names, name or str(known or "custom"), _labels_by_name)


def _labels_by_name(data: Any, label: str) -> Shaped[np.ndarray, "..."]:
    """The labels of examples with features."""
    if hasattr(data, "select_columns"):
        return data.select_columns(label).with_format("numpy")[:][label]
    return np.asanyarray([data[i][label] for i in range(len(data))])


class _Adapted(AbstractImages):
    def __init__(self, source: _Source, size: int | None, channels: Literal[1, 3] | None):
        self._source, self._size, self._channels = source, size, channels
        self.name = source.name
        if not len(source.data):
            raise DataError(f"{self.name} is empty.")
        first = self._decode(0)
        self.image_shape, self.dtype = first.shape, first.dtype
        self._names = None if source.class_names is None else class_names_of(source.class_names)
        seen = self._names or self._numbered[1] or map(str, range(int(self.labels.max()) + 1))
        self.class_names = tuple(seen)

    def __len__(self) -> int:
        return len(self._source.data)

    @cached_property
    def labels(self) -> Int32[np.ndarray, " n"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The class number of each image."""
        labels, _ = self._numbered
        if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
            least = f" from {labels.min()}" if labels.dtype.kind in "iuf" else ""
            what = self._source.label
            what = repr(what) if isinstance(what, str) else "the second of the pairs"
            raise DataError(
                f"{what} of {self.name} holds {labels.dtype}{least}: it must "
                "be one class number per image, from 0; remove images without a class first."
            )
        return labels.astype(np.int32)

    @cached_property
    def _numbered(self) -> tuple[Shaped[np.ndarray, "..."], tuple[str, ...] | None]:
        """The labels, as numbers if they are text, and the names that this gives."""
        column = self._source.column(self._source.data, self._source.label)
        return numbered(plain_array(np.asanyarray(column), "labels"), self._names)

    @property
    def marks(self) -> list[str]:
        """The fingerprint of a Hugging Face dataset, and the size images are brought to."""
        fingerprint = getattr(self._source.data, "_fingerprint", "")
        return [str(fingerprint), f"size {self._size}"]

    def image(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        """The pixels of image number `index`."""
        pixels = self._decode(index)
        if pixels.shape[2] == 1 and self.image_shape[2] == 3:  # a gray one among color ones
            pixels = with_channels(pixels, index, 3)
        found, first = (pixels.shape, pixels.dtype), (self.image_shape, self.dtype)
        if found != first:
            is_, was = next(x for x in zip(found, first, strict=True) if x[0] != x[1])
            raise DataError(
                f"image {index} of {self.name} is {is_} and the first {was}: "
                "pass data.adapt(dataset, size=..., channels=...)."
            )
        return pixels

    def _decode(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        where = f"image {index} of {self.name}"
        value = self._source.data[index][self._source.image]
        if isinstance(value, Mapping):  # of Hugging Face, not decoded: {"bytes", "path"}
            value = value["bytes"] or Path(value["path"]).read_bytes()
        if isinstance(value, bytes) or hasattr(value, "convert"):  # encoded, or a pillow image
            return decode(value, where, channels=self._channels, size=self._size)
        pixels = _pixels(value, where)
        pixels = with_channels(pixels, where, self._channels)
        if self._size is None or pixels.shape[:2] == (self._size, self._size):
            return pixels
        if pixels.dtype != np.uint8:
            raise DataError(
                f"{where} is {pixels.dtype}, and only uint8 is brought to a size: leave size out, "
                "or resize before it is made floats."
            )
        return resize(pixels, self._size)


def _pixels(value: Any, where: str) -> Shaped[np.ndarray, "h w c"]:
    """An array or tensor as [h w c]."""
    of_torch, pixels = is_tensor(value), plain_array(np.asanyarray(array_of(value)), "image")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if (
        pixels.ndim == 3
        and pixels.shape[0] in (1, 3)
        and (of_torch or min(pixels.shape[1:]) > 4)  # as Hugging Face gives tensors of PyTorch
    ):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or not (pixels.dtype == np.uint8 or pixels.dtype.kind == "f"):
        raise DataError(
            f"{where} is {pixels.dtype} {pixels.shape}: pass uint8 [h w c] or floats in [0, 1]."
        )
    return pixels


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
