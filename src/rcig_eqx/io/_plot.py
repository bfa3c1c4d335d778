"""A picture of a distilled set."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .._coreset import Coreset
from ._files import write_atomically

_MAX_SHOWN = 10  # images of one class


def to_pixels(coreset: Coreset, *, compress: bool = False) -> Float[np.ndarray, "n h w c"]:
    """The distilled images in [0, 1], mapped back through the preprocessing.

    Distilled images are not bound to the range of real ones. What lies outside is clipped. With
    `compress` an image that leaves the range is scaled into it instead, all its channels alike, so
    that everything in it can be seen; others stay as they are.
    """
    preprocess = getattr(coreset, "preprocess", None)
    if preprocess is None:
        raise ValueError("This is no coreset with its preprocessing: pass result.coreset.")
    pixels = np.asarray(preprocess.inverse(coreset.images))
    if compress:
        low = np.minimum(pixels.min((1, 2, 3), keepdims=True), 0.0)
        high = np.maximum(pixels.max((1, 2, 3), keepdims=True), 1.0)
        return (pixels - low) / (high - low)
    return np.clip(pixels, 0.0, 1.0)


def save_grid(
    coreset: Coreset,
    class_names: tuple[str, ...],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    clip: bool = False,
) -> Path:
    """Write a PNG (or PDF, by the suffix) of the distilled images, one strip of each class.

    Images whose pixels leave the range of real ones are compressed into it, or clipped to it with
    `clip`, as [`to_pixels`][rcig_eqx.to_pixels] does. Of more than ten images a class the first ten
    are shown. Needs matplotlib, the extra `plot`.
    """
    path = Path(path)
    pixels = to_pixels(coreset, compress=not clip)
    classes = len(class_names)
    if classes != coreset.num_classes or len(pixels) % classes:
        raise ValueError(
            f"{len(pixels)} distilled images of {coreset.num_classes} classes do not fit "
            f"{classes} class_names: pass one name a class."
        )
    strips = _strips(pixels, classes)
    per_class, shown = len(pixels) // classes, min(len(pixels) // classes, _MAX_SHOWN)
    if shown < per_class:
        title = f"{title} (the first {shown} of {per_class} images of each class)".strip()

    # Short strips stand side by side with their names above, long ones have the names beside.
    many = shown == 1 and classes > 25  # a page of them rather than a roll
    columns = max(1, min(10 if many else 5, _MAX_SHOWN // shown, classes))
    rows = -(-classes // columns)
    height, width = strips.shape[1:3]
    beside = columns == 1
    name_width = 0.14 * max(map(len, class_names)) if beside else 0
    figure = matplotlib_figure(
        figsize=(
            columns * (width / height + (0.24 if shown > 1 else 0.1)) + name_width,
            rows * (1.06 if beside else 1.28) + 0.5 * bool(title),
        ),
        layout="constrained",
    )
    if not beside and shown > 1:
        figure.get_layout_engine().set(w_pad=0.12)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_frame_on(False)
        axis.set(xticks=[], yticks=[])
    names = (name.replace("_", " ") for name in class_names)
    for axis, strip, name in zip(axes, strips, names, strict=False):
        axis.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if beside:
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=13)
        else:
            loc = "center" if shown == 1 else "left"
            axis.set_title(name, fontsize=8 if many else 11, pad=3, loc=loc)
    figure.suptitle(title, fontsize=13)
    return write_figure(figure, path)


def save_class(pixels: Float[np.ndarray, "n h w c"], path: str | os.PathLike[str]) -> Path:
    """Write a PNG of all images of one class, in rows of ten, each pixel as a square.

    Needs matplotlib, the extra `plot`.
    """
    matplotlib = _matplotlib()
    path = Path(path)
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
    write_atomically(path, picture.getvalue())
    return path


def matplotlib_figure(**options: Any) -> Any:
    """A matplotlib figure, apart from any window; `ImportError` names the extra."""
    return _matplotlib().figure.Figure(**options)


def write_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG or PDF, by the suffix, whole or not at all."""
    picture = io.BytesIO()
    form = path.suffix.removeprefix(".") or "png"
    figure.savefig(picture, format=form, dpi=150, bbox_inches="tight")
    write_atomically(path, picture.getvalue())
    return path


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
    """The first images of each class side by side, on white; no channel axis if grey."""
    _, h, w, c = pixels.shape
    gap = max(1, w // 14)
    images = pixels.reshape(classes, -1, h, w, c)[:, :_MAX_SHOWN]
    spaced = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1)
    strips = np.moveaxis(spaced, 1, 2).reshape(classes, h, -1, c)[:, :, :-gap]
    return strips[..., 0] if c == 1 else strips
