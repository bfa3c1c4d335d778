"""What an image file shows, as pillow reads it: upright, opaque, of 8 bits."""

import functools
import os
import re
from typing import Any

from ._dataset import DataError

# The formats of today's photographs and drawings. Pillow reads others by starting a program, as
# EPS, or by parts that few use.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000"),
    *("PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"),
)
# What else is an image to whoever sorts files into folders.
_OTHER = """
    3fr arw avif avifs bw cr2 cr3 cur dcm dds dng emf eps exr fits hdr heic heics heif hif ico
    icns jxl jxr nef orf pcx pef psd raf ras raw rgb rw2 sgi srw svg svgz wmf xbm xcf xpm
"""
_GREY_MODES = {"1", "L", "LA"}
_SEE_THROUGH = {"LA", "PA", "RGBA", "RGBa"}
_ORIENTATION = 0x0112  # the EXIF tag, and how pillow names what its values ask for
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that image files are read in: those that the installed pillow has."""
    pillow().init()
    return tuple(name for name in _FORMATS if name in pillow().OPEN)


def is_readable(name: str) -> bool:
    """Whether a file of this name is an image in one of these formats, by its ending."""
    return os.path.splitext(name)[1].lower() in _suffixes()


def is_image_like(name: str) -> bool:
    """Whether a file of this name is an image, in whichever format."""
    return is_readable(name) or os.path.splitext(name)[1].lower()[1:] in _OTHER.split()


@functools.cache
def _suffixes() -> frozenset[str]:
    known = pillow().registered_extensions().items()
    return frozenset(end for end, name in known if name in (*formats(), "MPO"))  # MPO is JPEG


def gray_or_rgb(picture: Any, where: Any, channels: int | None) -> Any:
    """What a pillow image shows, in gray or RGB: with so many channels, or as many as it has.

    It is turned upright by its EXIF orientation, and laid on white where it is transparent.
    `DataError` for one of more than 8 bits, which pillow would cut.
    """
    if picture.mode.startswith(("I", "F")) or _is_cut(picture):
        raise DataError(
            f"{where} has pixels of more than 8 bits (mode {picture.mode}): scale it to 8 first."
        )
    gray = channels == 1 or (channels is None and is_gray(picture))
    picture.load()
    # TIFFs turn themselves when they are loaded. `ImageOps.exif_transpose` writes all tags anew,
    # and fails at those it cannot write.
    turn = picture.format != "TIFF" and _TURNS.get(picture.getexif().get(_ORIENTATION))
    if turn:
        picture = picture.transpose(pillow().Transpose[turn])
    if picture.mode in _SEE_THROUGH or "transparency" in picture.info:
        white = pillow().new("RGBA", picture.size, "white")
        picture = pillow().alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("L" if gray else "RGB")


def is_gray(picture: Any) -> bool:
    """Whether an image that pillow has opened has no colors."""
    return picture.mode in _GREY_MODES


def upright_size(picture: Any) -> tuple[int, int]:
    """Height and width of an image that pillow has opened, turned as its EXIF orientation says."""
    width, height = picture.size
    on_its_side = picture.getexif().get(_ORIENTATION, 1) >= 5
    return (width, height) if on_its_side else (height, width)


def _is_cut(picture: Any) -> bool:
    """Whether pillow keeps the upper 8 of 16 bits, as of PNG and TIFF in color.

    "BGR;16" is another thing: all three colors in 16 bits.
    """
    return any(re.search(r"(?<!BGR);16", str(tile[3])) for tile in getattr(picture, "tile", ()))


def pillow() -> Any:
    """The module `PIL.Image`, or an `ImportError` that names the extra."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('reading images needs pillow: pip install "rcig-eqx[images]".') from error
    return Image
