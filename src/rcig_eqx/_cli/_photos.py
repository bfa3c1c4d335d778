"""Images of a file or folder, brought to one size and number of channels."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._console import track
from ..data import AbstractImages, DataError, Dataset, ImageFolder
from ..data._archives import ordered
from ..data._folder import corrupt, list_images, shown_names
from ..data._pictures import formats, is_gray, pillow, upright_size
from ..data._resize import check_channels, check_size, resize, with_channels
from ..io._terminal import echo
from ..run._resume import digest

Images = Dataset | AbstractImages

# Pixels, to choose from where images are of several sizes. Whitening in color at 64 takes minutes,
# and its matrix 600 MB.
_SIDES = (8, 16, 32)
_LARGE = 256  # pixels of the shorter side: such images are brought to one of these, though alike
_IN_MEMORY = 2**31  # bytes of a folder's images; more stay on disk
_LONG = 500  # images whose reading shows a bar


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are read.

    - `directory`: looked in first for a set with a name.
    - `size`, `channels`: asked for, of any set; `skip_corrupt`: pass over corrupt photos.
    - `like`: the shape of the images that photos are to go with, if there are some.
    - `quiet`: print nothing.
    """

    directory: Path | None = None
    size: int | None = None
    channels: Any = None
    skip_corrupt: bool = False
    like: tuple[int, ...] | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        check_size(self.size)
        check_channels(self.channels)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a result says of it: what was asked for."""
        asked = {"size": self.size, "channels": self.channels, "skip_corrupt": self.skip_corrupt}
        return {name: value for name, value in asked.items() if value}

    def to_go_with(self, images: Images) -> "Reading":
        """The same, of images that are to have the shape of others."""
        return dataclasses.replace(self, like=images.image_shape)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What the headers of photos say: height and width, and whether all are gray."""

    sizes: np.ndarray
    gray: bool


def photos(root: Path, reading: Reading) -> Images:
    """The photos in `root/<class>/*`, in memory unless they are many."""
    files = [f for inside in list_images(root).values() for f in inside]
    size, channels = _chosen(root, files, reading)
    try:
        folder = ImageFolder(root, size=size, channels=channels, skip_corrupt=reading.skip_corrupt)
        whole = len(folder) * math.prod(folder.image_shape) <= _IN_MEMORY
        return _read(folder, reading.quiet) if whole else folder
    except DataError as error:
        bad = [] if reading.skip_corrupt else corrupt(files)
        if not bad:
            raise
        raise DataError(
            f"{root}: {shown_names(files, bad)} cannot be read. Mend or remove them, or pass "
            "--skip-corrupt."
        ) from error


def _read(folder: ImageFolder, quiet: bool) -> Dataset:
    """All images in memory, by several threads."""
    images = np.empty((len(folder), *folder.image_shape), np.uint8)
    read = ordered(folder.image, range(len(folder)))
    shown = not quiet and len(folder) >= _LONG
    for row, image in enumerate(track(read, "reading", len(folder), shown=shown)):
        images[row] = image
    return Dataset(images, folder.labels, folder.class_names, folder.name)


def _chosen(root: Path, files: Sequence[Path], reading: Reading) -> tuple[int | None, Any]:
    """The side of the square that photos are brought to, `None` to leave them, and the channels."""
    size, channels, like = reading.size, reading.channels, reading.like
    if like is not None:
        square = like[0] if like[0] == like[1] else None
        return size or square, channels or like[2]
    seen = _seen(files)
    if seen is None:  # none can be read, which is said when they are
        return size, channels
    low, high = seen.sizes.min(axis=0), seen.sizes.max(axis=0)
    if size is None and ((low != high).any() or low.min() > _LARGE):
        size = sensible_side(int(np.median(seen.sizes.min(axis=1))))
        to = "" if (low == high).all() else f" to {high[1]}x{high[0]}"
        if not reading.quiet:
            echo(
                f"{root} has images of {low[1]}x{low[0]}{to} pixels: the middle square of each is "
                f"brought to {size}x{size} (--size; 64 takes far longer)."
            )
    return size, channels or (1 if seen.gray else 3)


def sensible_side(short: int) -> int:
    """The largest of a few usual sides that is not above the median of the shorter sides."""
    return max((side for side in _SIDES if side <= short), default=short)


def _seen(files: Sequence[Path]) -> _Seen | None:
    """What the headers of the files say that have a readable one."""
    headers = [header for header in ordered(_header, files) if header is not None]
    if not headers:
        return None
    sizes, gray = zip(*headers, strict=True)
    return _Seen(np.array(sizes), all(gray))


def _header(file: Path) -> tuple[tuple[int, int], bool] | None:
    """Height and width of an image, turned upright, and whether it is gray."""
    image = pillow()
    try:
        with image.open(file, formats=formats()) as opened:
            return upright_size(opened), is_gray(opened)
    except Exception:  # pillow's decoders raise many kinds for a damaged file
        return None


def sized(images: Images, reading: Reading) -> Images:
    """Images of any set, at the size and with the channels that were asked for."""
    size, channels, shape = reading.size, reading.channels, images.image_shape
    wanted = (size or shape[0], size or shape[1], channels or shape[2]) if len(shape) == 3 else ()
    if wanted == shape or size is channels is None:
        return images
    dtype = images.images.dtype if isinstance(images, Dataset) else images.dtype
    if not wanted or dtype != np.uint8:
        raise DataError(
            f"{images.name} has no uint8 images [h w c]: leave out --size and --channels."
        )
    data = images.read() if isinstance(images, AbstractImages) else images
    read = [with_channels(x, data.name, channels) for x in data.images]
    read = read if size is None else [resize(x, size) for x in read]
    return dataclasses.replace(data, images=np.stack(read))


def mark_of(place: Path | None, images: Images) -> str:
    """A short hash that tells a set of images from others: of a folder's file names and sizes, or
    of all that there is in memory."""
    if place is not None and place.is_dir():
        files = [f for inside in list_images(place).values() for f in inside]
        return digest(f"{f.parent.name}/{f.name} {f.stat().st_size}" for f in files)
    if isinstance(images, AbstractImages):
        return digest([len(images), images.labels, *images.marks])
    return digest([images.labels, images.images])
