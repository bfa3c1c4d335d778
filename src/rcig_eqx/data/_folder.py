"""Images in one folder a class, opened lazily."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from ._dataset import DataError
from ._images import AbstractImages
from ._resize import check_size, decode

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class ImageFolder(AbstractImages):
    """The images of `path/<class>/*`, decoded one by one when asked for: a grain data source.

    **Arguments:**

    - `path`: a folder with one folder of images a class; classes and files are sorted by name,
        hidden ones and files that are not images are passed over.
    - `channels`: 1 reads every image as grey, 3 as RGB; by default, what the first image is.
    - `size`: the middle square of every image at so many pixels, as
        [`resize`][rcig_eqx.data.resize] makes it; as they are if `None`.

    `folder[i]` is `(image uint8 [h w c], label)`; without `size`, all images must have one.
    `.labels` [n], `.class_names` and `.files` are known without decoding. Raises `DataError` naming
    the folder or file for a layout, an image or a size that does not fit. Needs pillow.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        channels: Literal[1, 3] | None = None,
        size: int | None = None,
    ):
        check_size(size)
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
        self.name = root.name
        self.class_names = tuple(d.name for d in classes)
        self.files: list[Path] = [f for inside in files for f in inside]
        counts = [len(inside) for inside in files]
        self.labels = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        self._channels, self._size = channels, size
        height, width, depth = self._decode(self.files[0]).shape
        self.image_shape = (height, width, depth)

    @property
    def marks(self) -> Iterator[str]:
        """The names of its files, and the size they are brought to."""
        yield from (f"{f.parent.name}/{f.name}" for f in self.files)
        if self._size is not None:
            yield f"size {self._size}"

    def image(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The pixels of file number `index`."""
        file = self.files[index]
        image = self._decode(file)
        if image.shape[2] < self.image_shape[2]:
            image = np.repeat(image, 3, axis=2)  # a grey one among colour ones
        if image.shape != self.image_shape:
            coloured = image.shape[2] > self.image_shape[2]
            fixes = ["use ImageFolder(path, channels=3)"] if coloured else []
            if image.shape[:2] != self.image_shape[:2]:
                fixes = [f"use ImageFolder(path, size={min(self.image_shape[:2])})", *fixes]
            raise DataError(
                f"{file} is {_size(image.shape)} but {self.files[0]} is "
                f"{_size(self.image_shape)}: make all images alike, or {' or '.join(fixes)}."
            )
        return image

    def _decode(self, file: Path) -> UInt8[np.ndarray, "h w c"]:
        return decode(file, file, channels=self._channels, size=self._size)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} in {'colour' if shape[2] == 3 else 'grey'}"
