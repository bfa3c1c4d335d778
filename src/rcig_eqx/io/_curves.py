"""Curves of several runs in one figure."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ._plot import label, matplotlib_figure, write_figure

_POINTS = 100  # of a line, each the mean of the steps around it


@dataclasses.dataclass(frozen=True)
class Line:
    """One run: lines of the same name have the same color.

    - `x`, `y`: a number per step; `y` may be empty.
    - `end`: what was measured after the last step, mean and standard deviation.
    """

    name: str
    x: Float[np.ndarray, " steps"]
    y: Float[np.ndarray, " *steps"]
    end: tuple[float, float] | None = None


def save_curves(
    lines: Sequence[Line], path: str | os.PathLike[str], *, across: str, up: str
) -> Path:
    """Write all lines in one figure, a PNG or PDF. Needs matplotlib, the extra `plot`."""
    figure = matplotlib_figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    names = list(dict.fromkeys(line.name for line in lines))
    for line in lines:
        color = f"C{names.index(line.name) % 10}"
        if len(line.y):
            parts = min(_POINTS, len(line.y))
            x, y = ([part.mean() for part in np.array_split(a, parts)] for a in (line.x, line.y))
            axes.plot(x, y, color=color, linewidth=1)
        if line.end:
            mean, spread = line.end
            axes.errorbar(line.x[-1:], [mean], [spread], fmt="o", color=color, capsize=3)
    for number, name in enumerate(names):
        axes.plot([], [], color=f"C{number % 10}", label=label(name))
    axes.grid(alpha=0.3)
    axes.legend()
    return write_figure(figure, path)
