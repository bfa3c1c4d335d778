"""Encoded images decoded, and brought to one size."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ._dataset import DataError

_GREY_MODES = {"1", "L", "LA"}


def resize(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """The middle square of an image, `size` pixels high and wide.

    The shorter side is brought to `size`, by a triangle filter that is widened where the image
    shrinks (antialiased), and what the longer side has over is cut off at both ends alike. An image
    that is so large already is returned as it is. Needs pillow.
    """
    check_size(size)
    pillow = _pillow()
    if image.shape[2] not in (1, 3):
        raise ValueError(f"image has {image.shape[2]} channels: resize takes 1 or 3.")
    picture = pillow.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return _pixels(_square(picture, size))


def decode(
    encoded: bytes | Path, where: Any, *, channels: int | None = None, size: int | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image file, with so many channels, or with as many as it has.

    `DataError` names `where` it is if it cannot be read.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            picture = grey_or_rgb(image, where, channels)
    except DataError:
        raise
    except Exception as error:  # pillow's decoders raise many kinds for a damaged file
        raise DataError(
            f"{where} cannot be read as an image ({error}): mend or remove it."
        ) from error
    return _pixels(picture if size is None else _square(picture, size))


def grey_or_rgb(picture: Any, where: Any, channels: int | None) -> Any:
    """A pillow image in grey or RGB: with so many channels, or with as many as it has.

    `DataError` for one of more than 8 bits, which pillow would clip.
    """
    if picture.mode.startswith(("I", "F")):
        raise DataError(
            f"{where} has pixels of more than 8 bits (mode {picture.mode}): scale it to 8 first."
        )
    grey = channels == 1 or (channels is None and picture.mode in _GREY_MODES)
    return picture.convert("L" if grey else "RGB")


def check_size(size: Any) -> None:
    """Raise `ValueError` for a size that no image can have."""
    if size is not None and (not isinstance(size, int | np.integer) or size < 1):
        raise ValueError(f"size is {size!r}: choose a whole number of pixels, such as 64.")


def _square(picture: Any, size: int) -> Any:
    """The centre square, cut and scaled at once, so that no offset is rounded to whole pixels."""
    width, height = picture.size
    if width == height == size:
        return picture
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), _pillow().Resampling.BILINEAR, box=box)


def _pixels(picture: Any) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('reading images needs pillow: pip install "rcig-eqx[images]".') from error
    return Image
