"""Images in one folder a class, opened lazily."""

import os
from pathlib import Path
from typing import Literal, SupportsIndex

import numpy as np
from jaxtyping import Int32, UInt8

from ._dataset import DataError, Dataset

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_GREY_MODES = {"1", "L", "LA"}


class ImageFolder:
    """The images of `path/<class>/*`, decoded one by one when asked for: a grain data source.

    **Arguments:**

    - `path`: a folder with one folder of images a class; classes and files are sorted by name,
        hidden ones and files that are not images are passed over.
    - `channels`: 1 reads every image as grey, 3 as RGB; by default, what the first image is.

    `folder[i]` is `(image uint8 [h w c], label)`; all images must have one size. `.labels` [n],
    `.class_names` and `.files` are known without decoding. Raises `DataError` naming the folder or
    file for a layout, an image or a size that does not fit. Needs pillow.
    """

    def __init__(self, path: str | os.PathLike[str], *, channels: Literal[1, 3] | None = None):
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: give one that holds a folder for each class.")
        classes = [d for d in _visible(root) if d.is_dir()]
        if not classes:
            raise DataError(
                f"{root} holds no folders: put the images of each class in {root}/<class>/."
            )
        files = [[f for f in _visible(d) if f.suffix.lower() in _SUFFIXES] for d in classes]
        for folder, inside in zip(classes, files, strict=True):
            if not inside:
                raise DataError(f"{folder} holds no images: add some or remove the folder.")
        self.name: str = root.name
        self.class_names: tuple[str, ...] = tuple(d.name for d in classes)
        self.files: list[Path] = [f for inside in files for f in inside]
        counts = [len(inside) for inside in files]
        self.labels: Int32[np.ndarray, " n"] = np.repeat(
            np.arange(len(files), dtype=np.int32), counts
        )
        self._channels = channels
        self.image_shape: tuple[int, ...] = _decode(self.files[0], channels).shape

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"ImageFolder({self.name!r}: {len(self)} images, {len(self.class_names)} classes)"

    def __getitem__(self, index: SupportsIndex) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        file = self.files[index]
        image = _decode(file, self._channels)
        if image.shape[2] < self.image_shape[2]:
            image = np.repeat(image, 3, axis=2)  # a grey one among colour ones
        if image.shape != self.image_shape:
            raise DataError(
                f"{file} is {_size(image.shape)} but {self.files[0]} is "
                f"{_size(self.image_shape)}: make all images alike"
                + (", or use ImageFolder(path, channels=3)." if image.shape[2] == 3 else ".")
            )
        return image, int(self.labels[index])

    def read(self) -> Dataset:
        """All images in memory."""
        images = np.empty((len(self), *self.image_shape), np.uint8)
        for i in range(len(self)):
            images[i] = self[i][0]
        return Dataset(images, self.labels, self.class_names, self.name)


def _decode(file: Path, channels: int | None) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image with so many channels, or with as many as it has."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('image folders need pillow: pip install "rcig-eqx[images]".') from error
    try:
        with Image.open(file) as image:
            grey = channels == 1 or (channels is None and image.mode in _GREY_MODES)
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # pillow's decoders raise many kinds for a damaged file
        raise DataError(
            f"{file} cannot be read as an image ({error}): mend or remove it."
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} in {'colour' if shape[2] == 3 else 'grey'}"
