"""Encoded images decoded, and images brought to one size and number of channels."""

import io
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from .._checks import ArgumentError
from ._dataset import DataError
from ._pictures import formats, gray_or_rgb, pillow


def resize(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """The middle square of an image, `size` pixels high and wide.

    The shorter side is brought to `size`, by a triangle filter that is widened where the image
    shrinks (antialiased), and what the longer side has over is cut off at both ends alike. An image
    that is so large already is returned as it is. Needs pillow.
    """
    check_size(size)
    if image.shape[2] not in (1, 3):
        raise ValueError(f"image has {image.shape[2]} channels: resize takes 1 or 3.")
    return _pixels(_square(_picture(image), size))


def decode(
    encoded: Any, where: Any, *, channels: int | None = None, size: int | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image file, with so many channels, or with as many as it has.

    `encoded` is its path, its bytes, or an image that pillow has opened. Of an animated file the
    first image is taken. `DataError` names `where` it is if it cannot be read.
    """
    image = pillow()
    try:
        if not isinstance(encoded, image.Image):
            file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
            with image.open(file, formats=formats()) as opened:
                picture = gray_or_rgb(opened, where, channels)
        else:
            picture = gray_or_rgb(encoded, where, channels)
    except DataError:
        raise
    except image.UnidentifiedImageError as error:
        raise DataError(
            f"{where} cannot be read as an image (it is none of {', '.join(formats())}): convert "
            "or remove it."
        ) from error
    except Exception as error:  # pillow's decoders raise many kinds for a damaged file
        what = f"cannot be read as an image ({error})"
        raise DataError(f"{where} {what}: mend or remove it.") from error
    return _pixels(picture if size is None else _square(picture, size))


def with_channels(
    image: Shaped[np.ndarray, "h w c"], where: Any, channels: int | None
) -> Shaped[np.ndarray, "h w d"]:
    """The image, uint8 or floats, with so many channels, 1 or 3, as it is if `None`.

    `DataError` names `where` it is if it has neither 1 nor 3.
    """
    if channels is None or image.shape[2] == channels:
        return image
    if image.shape[2] not in (1, 3):
        raise DataError(
            f"{where} has {image.shape[2]} channels: leave channels= out, or pass images of 1 or 3."
        )
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.dtype != np.uint8:
        return (image @ np.array(_LUMA, image.dtype))[..., None]
    return _pixels(_picture(image).convert("L"))


_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in what pillow makes gray


def check_channels(channels: Any) -> None:
    """Raise `ValueError` for a number of channels that images are not read with."""
    if isinstance(channels, bool) or channels not in (None, 1, 3):
        raise ArgumentError("channels", f"is {channels!r}: pass 1 for gray or 3 for RGB.")


def check_size(size: Any) -> None:
    """Raise `ValueError` for a size that no image can have."""
    if size is not None and (not isinstance(size, int | np.integer) or size < 1):
        raise ArgumentError("size", f"is {size!r}: choose a whole number of pixels, such as 64.")


def _picture(image: UInt8[np.ndarray, "h w c"]) -> Any:
    return pillow().fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _square(picture: Any, size: int) -> Any:
    """The center square, cut and scaled at once, so that no offset is rounded to whole pixels."""
    from PIL import ImageOps

    return ImageOps.fit(picture, (size, size), pillow().Resampling.BILINEAR)


def _pixels(picture: Any) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)
