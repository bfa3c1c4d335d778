"""Figures of a run and of its evaluation: learning curves, and the confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from ._plot import cut, matplotlib_figure

COLOR, PALE = "#2f6fde", 0.25
_POINTS = 600  # of a curve at most
_TITLES = {"loss": "outer loss", "accuracy": "accuracy on the outer batch"}
CURVES = tuple(_TITLES)
_CELLS = 250  # of a confusion matrix in each direction
_PLAIN: dict[str, Any] = {"parse_math": False}


def history_figure(history: Mapping[str, np.ndarray], names: Sequence[str] = CURVES) -> Any:
    """A matplotlib figure of the curves of a history, those of `names` that it has, side by side.

    A line is the running mean over 2% of the steps; the band has the lowest and the highest of
    what is drawn at one point. Steps that were rejected are marked below.
    """
    known = [name for name in names if len(history.get(name, ())) > 0]
    if not known:
        raise ValueError("The history has none of these curves: name some of result.history.")
    figure = matplotlib_figure(figsize=(4.6 * len(known), 2.9), layout="constrained")
    axes = figure.subplots(1, len(known), squeeze=False)[0]
    rejected = 1 + np.flatnonzero(history.get("rejected", ()))
    for axis, name in zip(axes, known, strict=True):
        values = np.where(np.isfinite(history[name]), history[name], np.nan)
        _curve(axis, values)
        axis.set_title(_TITLES.get(name, name), loc="left", fontsize=10, **_PLAIN)
        axis.set_xlabel("step")
        if name == "accuracy":
            axis.yaxis.set_major_formatter("{x:.0%}")
        if len(rejected):
            bottom = axis.get_xaxis_transform()
            axis.plot(rejected, 0 * rejected, "|", transform=bottom, color="#c43d3d")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    return figure


def _curve(axis: Any, values: Float[np.ndarray, " steps"]) -> None:
    """A running mean, and around it what it is the mean of."""
    steps = len(values)
    window = max(1, steps // 50)
    known, there = np.nan_to_num(values), np.isfinite(values).astype(float)
    sums = [np.convolve(x, np.ones(window)) for x in (known, there)]
    mean = (sums[0] / np.maximum(sums[1], 1))[:steps]  # of the steps up to each
    edges = np.unique(np.linspace(0, steps, min(steps, _POINTS) + 1).astype(int))
    if window > 1:
        low, high = (
            f.reduceat(np.where(there > 0, values, mean), edges[:-1])
            for f in (np.minimum, np.maximum)
        )
        axis.fill_between(edges[1:], low, high, color=COLOR, alpha=PALE, linewidth=0)
    points = "o" if steps < 3 else ""
    axis.plot(edges[1:], mean[edges[1:] - 1], color=COLOR, linewidth=1.6, marker=points)


def confusion_figure(
    counts: Int64[np.ndarray, "classes classes"], class_names: Sequence[str], *, title: str = ""
) -> Any:
    """A matplotlib figure of a confusion matrix: of each class, the row, the share of each answer.

    Numbers are written for up to 12 classes and names for up to 150. Of more than 250 classes a
    point has the largest of several shares.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    classes = len(class_names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = 0.5 if classes <= 12 else max(0.1, 6.5 / classes) if classes <= 150 else 7.0 / classes
    size, named = min(10.0, max(5.0, 58 * cell)), classes <= 150
    names = [cut(name.replace("_", " "), 18) for name in class_names] if named else []
    room = 0.35 + size / 72 * 0.6 * max(map(len, names), default=6)
    side = cell * classes
    wide, high = room + side + 0.9, room + side + 0.25 + 0.3 * bool(title)
    figure = matplotlib_figure(figsize=(wide, high))
    axis = figure.add_axes((room / wide, room / high, side / wide, side / high))
    blue = LinearSegmentedColormap.from_list("answers", [(*_RGB, 0.0), (*_RGB, 1.0)])
    norm = PowerNorm(0.5, 0, 1)
    corners = np.arange(classes + 1) - 0.5
    if classes <= 40:
        drawn = axis.pcolormesh(corners, corners, share, cmap=blue, norm=norm)
        axis.invert_yaxis()
    else:
        bounds = (-0.5, classes - 0.5, classes - 0.5, -0.5)
        drawn = axis.imshow(
            _largest(share),
            cmap=blue,
            norm=norm,
            interpolation="none",
            aspect="auto",
            extent=bounds,
        )
    if named:
        axis.set_xticks(range(classes), names, rotation=90, fontsize=size, **_PLAIN)
        axis.set_yticks(range(classes), names, fontsize=size, **_PLAIN)
    axis.tick_params(length=0 if named else 3)
    axis.set_xlabel("answer")
    axis.set_ylabel("class")
    if classes <= 12:
        for row, column in np.argwhere(share >= 0.005):
            shown = f"{100 * share[row, column]:.0f}"
            dark = share[row, column] > 0.35
            axis.text(
                column, row, shown, ha="center", va="center", fontsize=size - 1,
                color="white" if dark else "black",
            )  # fmt: skip
    bar = figure.add_axes(((room + side + 0.15) / wide, room / high, 0.14 / wide, side / high))
    figure.colorbar(drawn, cax=bar, format="{x:.0%}", ticks=[0, 0.05, 0.25, 0.5, 1]).outline.set(
        linewidth=0.5
    )
    axis.spines[:].set_linewidth(0.5)
    if title:
        figure.text(0.5, 1 - 0.1 / high, title, ha="center", va="top", fontsize=12, **_PLAIN)
    return figure


def _largest(share: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "m m"]:
    """The largest numbers of square blocks, so many that they can be seen."""
    side = -(-len(share) // _CELLS)
    blocks = np.arange(0, len(share), side)
    return np.maximum.reduceat(np.maximum.reduceat(share, blocks, 0), blocks, 1)


_RGB = tuple(int(COLOR[i : i + 2], 16) / 255 for i in (1, 3, 5))


def rows_figure(inputs: Float[np.ndarray, "n *shape"], class_names: Sequence[str]) -> Any:
    """A matplotlib figure of inputs that are no images: a line of colors per input, preprocessed,
    the first ten of each class."""
    flat = inputs.reshape(len(class_names), len(inputs) // len(class_names), -1)[:, :10]
    classes, each, numbers = flat.shape
    values = flat.reshape(classes * each, numbers)
    size = min(9.0, max(5.0, 400 / classes))
    high = max(1.6, min(9.0, 0.22 * classes * max(1, each // 2)))
    figure = matplotlib_figure(figsize=(6.4, high + 0.5), layout="constrained")
    axis = figure.add_subplot()
    reach = float(np.quantile(np.abs(values), 0.99)) or 1.0
    drawn = axis.imshow(
        values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="none"
    )
    if classes <= 60:
        names = [cut(name.replace("_", " "), 18) for name in class_names]
        middles = (np.arange(classes) + 0.5) * each - 0.5
        axis.set_yticks(middles, names, fontsize=size, **_PLAIN)
    axis.tick_params(left=False)
    axis.set_xlabel("number of the input" if len(inputs.shape) > 2 else "column")
    figure.colorbar(drawn, label="preprocessed value")
    return figure
