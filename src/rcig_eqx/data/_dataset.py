"""The labeled image set every other room receives, and the checks it passes once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from ._arrays import array_of, images_of, numbered, plain_array
from ._names import class_names_of

_ROUNDING = 1e-3  # floats may miss [0, 1] by this much
_CHUNK = 4096  # images looked at together, so that a memory-mapped set is never read whole


class DataError(ValueError):
    """Data that cannot be used as it is: the message names the file and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, or other inputs of a network, with one integer label each.

    **Arguments:**

    - `images` [n h w c]: uint8 in [0, 255] or finite floats in [0, 1]; or inputs of another shape,
        finite floats: rows of a table or embeddings [n d], series [n length channels]. A
        `np.memmap` is fine.
    - `labels` [n]: the class number of each image, an integer in `range(len(class_names))`.
    - `class_names`: one distinct, non-empty name per class. They are kept in Unicode's composed
        form (NFC), so that the same name from another system is the same name.
    - `name`: what the set is called in reports.

    Arrays of another byte order are copied into the machine's. Raises `ValueError`, naming the fix,
    when any of that does not hold.
    """

    # Shapes are left to `validate`: its messages name the fix, a failed annotation would not.
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        images, labels = plain_array(self.images, "images"), plain_array(self.labels, "labels")
        validate(images, labels, self.class_names)
        names = class_names_of(self.class_names)
        for field, value in (("images", images), ("labels", labels), ("class_names", names)):
            object.__setattr__(self, field, value)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        class_names: Any = None,
        *,
        name: str = "custom",
    ) -> "Dataset":
        """A dataset of anything `np.asarray` takes: `images` [n h w c] or [n *shape], `labels` [n].

        **Arguments:**

        - `images`: a tensor of PyTorch is read as [n c h w], and turned.
        - `labels`: class numbers, or the name of each image's class as text.
        - `class_names`: text in the order of the class numbers, or a mapping between names and
            numbers. If `None`, the classes are "0", "1", … up to the largest label, or the sorted
            distinct labels where these are text.
        """
        images = plain_array(np.asanyarray(images_of(images)), "images")
        labels = plain_array(np.asanyarray(array_of(labels)), "labels")
        names = None if class_names is None else class_names_of(class_names)
        labels, names = numbered(labels, names)
        if names is None:
            _validate_arrays(images, labels)
            names = tuple(str(i) for i in range(int(labels.max()) + 1))
        return cls(images, labels, names, name)

    @property
    def num_classes(self) -> int:
        """The number of class names."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of one image, or the shape of another input."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape, what = "x".join(map(str, self.image_shape)), noun(self.image_shape)
        return f"Dataset({self.name!r}: {len(self)} {what} {shape}, {self.num_classes} classes)"

    def subset(self, indices: Integer[np.ndarray, " m"] | Sequence[int]) -> "Dataset":
        """The images at `indices`, in that order, with the same classes."""
        indices = np.asarray(indices)
        if not len(indices):
            raise ValueError("indices is empty: a dataset needs at least one image.")
        return Dataset(self.images[indices], self.labels[indices], self.class_names, self.name)

    def per_class(
        self, k: int, rng: np.random.Generator, *, repeat: bool = False
    ) -> Int[np.ndarray, " m"]:
        """Indices of `k` random images of each class, without replacement, class after class:
        `k * num_classes` of them.

        Raises `ValueError` naming every class that has fewer than `k` images. With `repeat`, these
        give all that they have, again and again, and only classes without images are refused.
        """
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least one image of each class.")
        members = [np.flatnonzero(self.labels == i) for i in range(self.num_classes)]
        short = [f"{c!r} ({len(m)})" for c, m in zip(self.class_names, members, strict=True)
                 if len(m) < (1 if repeat else k)]  # fmt: skip
        if short:
            fix = "ask for fewer or add images of these classes"
            if len(short) == 1 and not len(members[0]) and self.class_names[0] == "0":
                fix = "labels count from 0; subtract 1 if these count from 1"
            raise ValueError(
                f"{k} images of each class were asked for, but too few are there of "
                f"{', '.join(short)}: {fix}."
            )
        drawn = [rng.choice(m, size=min(k, len(m)), replace=False) for m in members]
        return np.concatenate([np.resize(chosen, k) for chosen in drawn])


def noun(shape: tuple[int, ...]) -> str:
    """What inputs of a shape are called in messages."""
    return "images" if len(shape) == 3 else "inputs"


def validate(images: Any, labels: Any, class_names: Any) -> None:
    """Raise `ValueError`, naming the fix, unless the three make a `Dataset`."""
    _validate_arrays(images, labels)
    if not isinstance(class_names, tuple) or not all(isinstance(c, str) for c in class_names):
        raise ValueError("class_names must be a tuple of strings: tuple(str(c) for c in names).")
    class_names_of(class_names)
    if int(labels.max()) >= len(class_names):
        raise ValueError(
            f"labels reach {int(labels.max())} but there are {len(class_names)} class_names, so "
            f"they must lie in 0..{len(class_names) - 1}: give every class a name, or renumber."
        )


def _validate_arrays(images: Any, labels: Any) -> None:
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise ValueError("images and labels must be numpy arrays: use Dataset.from_arrays.")
    if images.ndim < 2 or (images.ndim != 4 and images.dtype == np.uint8):
        fixes = {2: "images[None, ..., None]", 3: "images[..., None] if they have no channel"}
        fix = fixes.get(images.ndim, "one [h w c] array per image")
        raise ValueError(
            f"images have shape {images.shape}, not [n h w c]: pass {fix}, or floats if they are "
            "no images."
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) > 4:
        raise ValueError(
            f"images have shape {images.shape}, which looks like [n c h w]: pass "
            "np.moveaxis(images, 1, -1)."
        )
    if labels.shape == (len(images), 1):
        raise ValueError(f"labels have shape {labels.shape}: pass labels.ravel().")
    if labels.ndim == 2:
        raise ValueError(
            f"labels have shape {labels.shape} and look one-hot: pass labels.argmax(axis=1)."
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise ValueError(
            f"there are {len(images)} images but labels have shape {labels.shape}: "
            "pass one integer label per image."
        )
    if 0 in images.shape:
        raise ValueError(f"images are empty: shape {images.shape}.")
    if labels.dtype.kind in "OSUT":
        raise ValueError(
            f"labels is {labels.dtype}, not integers: Dataset.from_arrays takes text, and "
            "np.unique(labels, return_inverse=True) gives the names and the class numbers."
        )
    if labels.dtype.kind not in "iu":
        whole = labels.dtype.kind in "fb" and not np.any(labels % 1)
        fix = "pass labels.astype(np.int32)" if whole else "pass the number of each one's class"
        raise ValueError(f"labels are {labels.dtype}, not integers: {fix}.")
    if int(labels.min()) < 0:
        raise ValueError(f"labels start at {int(labels.min())}: renumber the classes from 0.")
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        fix = "uint8 in [0, 255] (images.astype(np.uint8)) or floats in [0, 1]"
        fix = fix if images.ndim == 4 else "floats, as by X.astype(np.float32)"
        raise ValueError(f"{noun(images.shape[1:])} are {images.dtype}: pass {fix}.")
    _validate_floats(images)


def _validate_floats(images: Float[np.ndarray, "n *shape"]) -> None:
    count, first = 0, None
    low, high = np.inf, -np.inf
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        low, high = min(low, chunk.min()), max(high, chunk.max())
        bad = np.argwhere(~np.isfinite(chunk))
        if len(bad) and first is None:
            first = (start + int(bad[0, 0]), *(int(i) for i in bad[0, 1:]))
        count += len(bad)
    if count:
        what, numbers = ("images", "pixels") if images.ndim == 4 else ("inputs", "values")
        raise ValueError(
            f"{what} hold {count} NaN or infinite {numbers}, the first at index {first}: "
            f"remove those {what} or mend them with np.nan_to_num."
        )
    if images.ndim == 4 and (low < -_ROUNDING or high > 1 + _ROUNDING):
        raise ValueError(
            f"images are floats from {low:.4g} to {high:.4g}, not in [0, 1]: divide by 255 what "
            "counts to 255, and leave standardizing to preprocess=."
        )
