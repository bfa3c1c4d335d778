"""Images in one folder a class, opened lazily."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from ._archives import ordered
from ._dataset import DataError
from ._images import AbstractImages
from ._names import class_names_of, nfc
from ._paths import user_path
from ._pictures import is_image_like, is_readable
from ._resize import check_channels, check_size, decode, with_channels


class ImageFolder(AbstractImages):
    """The images of `path/<class>/*`, decoded one by one when asked for: a grain data source.

    **Arguments:**

    - `path`: a folder with one folder of images per class; classes and files are sorted by name,
        hidden ones and files that are not images are passed over. Class names are kept in Unicode's
        composed form (NFC).
    - `channels`: 1 reads every image as gray, 3 as RGB; by default, what the first image is.
    - `size`: the middle square of every image at so many pixels, as
        `resize` makes it; as they are if `None`.
    - `skip_corrupt`: pass over images that cannot be read, and warn of them by name and number. All
        are decoded once for it.

    `folder[i]` is `(image uint8 [h w c], label)`; without `size`, all images must have one.
    `.labels` [n], `.class_names` and `.files` are known without decoding. Files are of the formats
    that the installed pillow reads among BMP, GIF, JPEG, JPEG 2000, PNG, PPM, QOI, TGA, TIFF, WebP
    and AVIF. An image is turned upright by its EXIF orientation, laid on white where it is
    transparent, and the first of an animated file. Warns of image files that are passed over: those
    of other formats, and those that do not lie in `path/<class>` itself.

    Raises `DataError` naming the folder or file for a layout, an image or a size that does not fit,
    and for pixels of more than 8 bits. Needs pillow.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        channels: Literal[1, 3] | None = None,
        size: int | None = None,
        skip_corrupt: bool = False,
    ):
        check_size(size)
        check_channels(channels)
        root = user_path(path)
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: give one that holds a folder for each class.")
        listed = list_images(root)
        classes, files = [*listed], [*listed.values()]
        passed = list(_passed_over(root, classes))
        for folder, inside in listed.items():
            if not inside:
                other = next((f"; {f} is not taken" for f in passed if folder in f.parents), "")
                raise DataError(
                    f"{folder} holds no images of a known format{other}. Put images into it or "
                    "remove it."
                )
        if passed:
            warnings.warn(
                f"{root}: {len(passed)} image files are passed over, the first {passed[0]}. "
                "Convert them to PNG, and put them into the folder of their class.",
                stacklevel=2,
            )
        self.name = root.name
        try:
            self.class_names = class_names_of([d.name for d in classes], "class folders")
        except ValueError as error:
            raise DataError(f"{root}: {error}") from error
        self.files: list[Path] = [f for inside in files for f in inside]
        counts = [len(inside) for inside in files]
        self.labels = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        self._channels, self._size = channels, size
        if skip_corrupt:
            self._skip(corrupt(self.files))
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
        if image.shape[2] < self.image_shape[2]:  # a gray one among color ones
            image = with_channels(image, file, 3)
        if image.shape != self.image_shape:
            colored = image.shape[2] > self.image_shape[2]
            fixes = ["use ImageFolder(path, channels=3)"] if colored else []
            if image.shape[:2] != self.image_shape[:2]:
                fixes = [f"use ImageFolder(path, size={min(self.image_shape[:2])})", *fixes]
            raise DataError(
                f"{file} is {_size(image.shape)} but {self.files[0]} is "
                f"{_size(self.image_shape)}: make all images alike, or {' or '.join(fixes)}."
            )
        return image

    def _skip(self, corrupt: Sequence[int]) -> None:
        """Leave images out, and say so."""
        if not corrupt:
            return
        root, kept = self.files[0].parents[1], np.delete(np.arange(len(self)), corrupt)
        empty = set(range(self.num_classes)) - set(self.labels[kept].tolist())
        if empty:
            raise DataError(
                f"{root / self.class_names[min(empty)]} holds no image that can be read: put "
                "images into it or remove it."
            )
        warnings.warn(
            f"{self.name}: {shown_names(self.files, corrupt)} cannot be read and are passed over.",
            stacklevel=3,
        )
        self.files, self.labels = [self.files[i] for i in kept], self.labels[kept]

    def _decode(self, file: Path) -> UInt8[np.ndarray, "h w c"]:
        return decode(file, file, channels=self._channels, size=self._size)


def list_images(root: Path) -> dict[Path, list[Path]]:
    """The images of known formats in each class's folder, by name. `DataError` without folders."""
    classes = _visible(root, folders=True)
    if not classes:
        raise DataError(
            f"{root} holds no folders: put the images of each class in {root}/<class>/."
        )
    return {folder: [f for f in _visible(folder) if is_readable(f.name)] for folder in classes}


def corrupt(files: Sequence[Path]) -> list[int]:
    """The numbers of the files that cannot be read as images. All are decoded for it."""
    return [number for number, bad in enumerate(ordered(_is_corrupt, files)) if bad]


def _is_corrupt(file: Path) -> bool:
    try:
        decode(file, file)
    except DataError:
        return True
    return False


def shown_names(files: Sequence[Path], numbers: Sequence[int]) -> str:
    """So many of all images, and the names of the first few."""
    first = [f"{files[i].parent.name}/{files[i].name}" for i in numbers[:3]]
    more = f" and {len(numbers) - 3} more" * (len(numbers) > 3)
    return f"{len(numbers)} of {len(files)} images ({', '.join(first)}{more})"


def _visible(folder: Path, *, folders: bool = False) -> list[Path]:
    """The files or the folders in a folder, without hidden ones, by name in one Unicode form."""
    with os.scandir(folder) as found:  # it knows which are folders without asking for each
        names = [x.name for x in found if x.is_dir() == folders and not _is_hidden(x.name)]
    return [folder / name for name in sorted(names, key=nfc)]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _passed_over(root: Path, classes: list[Path]) -> Iterator[Path]:
    """The image files below `root` that are not read: of other formats, or in other folders."""
    for place, folders, files in os.walk(root):
        folder, folders[:] = Path(place), sorted(f for f in folders if not _is_hidden(f))
        read = is_readable if folder in classes else lambda _: False
        for name in sorted(files):
            if is_image_like(name) and not _is_hidden(name) and not read(name):
                yield folder / name


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} in {'color' if shape[2] == 3 else 'gray'}"
