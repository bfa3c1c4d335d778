"""A picture of a distilled set."""

import contextlib
import importlib.util
import io
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .._coreset import Coreset
from ..data._paths import user_path
from ._files import write_atomically

_MAX_SHOWN = 10  # images of one class
_MAX_INCHES = 24.0
_LETTER = 0.62  # the width of one, of its size
VISIBLE = (1, 3)  # channels


def to_pixels(coreset: Coreset, *, compress: bool = False) -> Float[np.ndarray, "n h w c"]:
    """The distilled images in [0, 1], mapped back through the preprocessing.

    Distilled images are not bound to the range of real ones. What lies outside is clipped. With
    `compress` an image that leaves the range is scaled into it instead, all its channels alike, so
    that everything in it can be seen; others stay as they are.
    """
    preprocess = getattr(coreset, "preprocess", None)
    if preprocess is None:
        raise ValueError("This is no coreset with its preprocessing: pass result.coreset.")
    if not has_pictures(coreset):
        raise ValueError(
            f"Pictures are of images [h w c], and each input is {list(coreset.images.shape[1:])}: "
            "preprocess.inverse(coreset.images) gives its values."
        )
    pixels = np.asarray(preprocess.inverse(coreset.images))
    if compress:
        low = pixels.min((1, 2, 3), keepdims=True, initial=0.0)
        high = pixels.max((1, 2, 3), keepdims=True, initial=1.0)
        return (pixels - low) / (high - low)
    return np.clip(pixels, 0.0, 1.0)


def has_pictures(coreset: Coreset) -> bool:
    """Whether what is distilled are images."""
    return len(coreset.images.shape) == 4


def save_grid(
    coreset: Coreset,
    class_names: tuple[str, ...],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    clip: bool = False,
) -> Path:
    """Write a PNG (or PDF, by the suffix) of the distilled images, as `plot_grid` draws them."""
    figure = plot_grid(coreset, class_names, title=title, clip=clip)
    return write_figure(figure, path, tight=False)


def grid_png(coreset: Coreset, class_names: tuple[str, ...]) -> bytes | None:
    """What a notebook shows of a set: `None` of what is no image, and without matplotlib."""
    if not has_pictures(coreset) or importlib.util.find_spec("matplotlib") is None:
        return None
    picture = io.BytesIO()
    plot_grid(coreset, class_names).savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def plot_grid(
    coreset: Coreset, class_names: tuple[str, ...], *, title: str = "", clip: bool = False
) -> Any:
    """A matplotlib figure of the distilled images, one strip of each class.

    Images whose pixels leave the range of real ones are compressed into it, or clipped to it with
    `clip`, as `to_pixels` does. Of more than ten images per class the first ten are shown, and of
    images that are neither gray nor RGB the mean of their channels; the title says both. Long names
    are cut, and those of thousands of classes left out. Needs matplotlib, the extra `plot`.
    """
    pixels = to_pixels(coreset, compress=not clip)
    classes, channels = len(class_names), pixels.shape[3]
    if classes != coreset.num_classes or len(pixels) % classes:
        raise ValueError(
            f"{len(pixels)} distilled images of {coreset.num_classes} classes do not fit "
            f"{classes} class_names: pass one name per class."
        )
    per_class = len(pixels) // classes
    notes = [] if channels in VISIBLE else [f"the mean of {channels} channels"]
    if per_class > _MAX_SHOWN:
        notes.append(f"the first {_MAX_SHOWN} of {per_class} images of each class")
    title = cut(title, 80) + (f" ({', '.join(notes)})" if notes else "")
    strips = _strips(pixels, classes)
    return _grid(strips, min(per_class, _MAX_SHOWN), class_names, title.strip())


def _grid(strips: np.ndarray, shown: int, class_names: tuple[str, ...], title: str) -> Any:
    """A figure of strips of `shown` images: one raster, with their names in its gaps."""
    classes, height, width = strips.shape[:3]
    # Short strips stand side by side with their names above, long ones have the names beside. Many
    # make a page rather than a roll.
    columns = max(1, min(5, _MAX_SHOWN // shown, classes))
    if classes > 25:
        columns = max(columns, round(math.sqrt(classes * height / width)))
    above, rows = columns > 1, -(-classes // columns)
    gap, line = max(1, width // shown // 8), max(1, height // (4 if above else 16))
    sheet = np.ones((rows * (height + line), columns * (width + gap), *strips.shape[3:]), "f4")
    corners = [
        (line * above + (height + line) * (i // columns), (width + gap) * (i % columns))
        for i in range(classes)
    ]
    for strip, (y, x) in zip(strips, corners, strict=True):
        sheet[y : y + height, x : x + width] = strip

    inches = min(1 / height, _MAX_INCHES / max(sheet.shape[:2]))  # of a pixel
    room = inches * width if above else 3.0  # for a name
    longest = min(24, max(map(len, class_names)))  # one that is longer makes no others small
    size = min(12.0 * inches * height, max(72 * room / _LETTER / longest, 5.0))
    names = [cut(name.replace("_", " "), int(72 * room / _LETTER / size)) for name in class_names]
    left = 0.1 if above else 0.2 + size * _LETTER / 72 * max(map(len, names))
    top = 0.1 + 0.4 * bool(title)
    down, across = (inches * side for side in sheet.shape[:2])
    wide = max(left + across + 0.1, 0.2 + 13 * _LETTER / 72 * len(title))
    high = top + down + 0.1
    figure = matplotlib_figure(figsize=(wide, high))
    axis = figure.add_axes((left / wide, 0.1 / high, across / wide, down / high))
    axis.set_axis_off()
    bounds = (0, sheet.shape[1], sheet.shape[0], 0)
    axis.imshow(
        sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto", extent=bounds
    )
    plain: dict[str, Any] = {"parse_math": False, "usetex": False}
    for name, (y, x) in zip(names, corners, strict=True):
        if size < 4:  # points, which nobody reads
            break
        if not above:
            where = (-0.1 / inches, y + height / 2, "right", "center")
        elif shown > 1:
            where = (x, y - line / 8, "left", "bottom")
        else:
            where = (x + width / 2, y - line / 8, "center", "bottom")
        axis.text(*where[:2], name, ha=where[2], va=where[3], fontsize=size, **plain)
    figure.text(0.5, 1 - 0.12 / high, title, ha="center", va="top", fontsize=13, **plain)
    return figure


def save_class(pixels: Float[np.ndarray, "n h w c"], path: str | os.PathLike[str]) -> Path:
    """Write a PNG of all images of one class, in rows of ten, each pixel as a square.

    Needs matplotlib, the extra `plot`.
    """
    matplotlib = _matplotlib()
    n, h, w, _ = pixels.shape
    columns = min(n, _MAX_SHOWN)
    rows = -(-n // columns)
    white = ((0, rows * columns - n), (0, max(1, h // 14)), (0, 0), (0, 0))  # and between rows
    strips = _strips(np.pad(pixels, white, constant_values=1), rows)
    sheet = strips.reshape(-1, *strips.shape[2:])[: -max(1, h // 14)]
    side = max(1, 128 // max(h, w))
    sheet = sheet.repeat(side, axis=0).repeat(side, axis=1)
    picture = io.BytesIO()
    matplotlib.image.imsave(picture, sheet, format="png", cmap="gray", vmin=0, vmax=1)
    path = user_path(path)
    write_atomically(path, picture.getvalue())
    return path


def matplotlib_figure(**options: Any) -> Any:
    """A matplotlib figure, apart from any window; `ImportError` names the extra."""
    return _matplotlib().figure.Figure(**options)


def write_figure(figure: Any, path: str | os.PathLike[str], *, tight: bool = True) -> Path:
    """Write a figure as PNG or PDF, by the suffix, whole or not at all."""
    path, picture = user_path(path), io.BytesIO()
    form = path.suffix.removeprefix(".") or "png"
    with warnings.catch_warnings():
        # A box stands for a letter that the font lacks.
        warnings.filterwarnings("ignore", "(?s).*Glyph .* missing from")
        figure.savefig(picture, format=form, dpi=150, bbox_inches="tight" if tight else None)
    write_atomically(path, picture.getvalue())
    return path


@contextlib.contextmanager
def drawing(but: type[Exception] | tuple[()] = (), what: str = "picture") -> Iterator[None]:
    """A picture that fails within is a warning: what it is of is worth more. `but` is raised."""
    try:
        yield
    except but:
        raise
    except Exception as error:
        warnings.warn(f"No {what}: {error}", RuntimeWarning, stacklevel=3)


def label(name: str) -> str:
    """A name of a user's in a figure, in which matplotlib takes what is between dollars for TeX."""
    return printable(name).replace("$", r"\$")


def printable(name: str) -> str:
    """A name with a sign in place of what is no text: control characters, bytes of no encoding."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def cut(name: str, letters: int) -> str:
    """The beginning of a name that is too long."""
    return printable(name if len(name) <= letters else f"{name[: max(0, letters - 1)]}…")


def _matplotlib():
    try:
        import matplotlib.figure
        import matplotlib.image
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'rcig-eqx[plot]'.") from error
    return matplotlib


def _strips(
    pixels: Float[np.ndarray, "n h w c"], classes: int
) -> Float[np.ndarray, "classes h width *c"]:
    """The first images of each class side by side, on white; no channel axis if gray.

    Of images that are neither gray nor RGB the mean of their channels is shown.
    """
    if pixels.shape[3] not in VISIBLE:
        pixels = pixels.mean(3, keepdims=True)
    _, h, w, c = pixels.shape
    gap = max(1, w // 14)
    images = pixels.reshape(classes, -1, h, w, c)[:, :_MAX_SHOWN]
    spaced = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1)
    strips = np.moveaxis(spaced, 1, 2).reshape(classes, h, -1, c)[:, :, :-gap]
    return strips[..., 0] if c == 1 else strips
