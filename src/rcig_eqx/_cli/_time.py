"""How long a run is to take: by its time, and by the width of its network."""

import warnings
from typing import Any

import jax

from ..models._architectures import PAPER_WIDTH, cpu_width
from ..run._checkpoint import Checkpoints
from ..run._limit import TimeLimit


def time_limit(asked: Any) -> TimeLimit | None:
    """What ends the run by time, if anything does."""
    return None if asked.minutes is None else TimeLimit(asked.minutes)


def steps_to_take(asked: Any) -> int:
    """The steps to ask `distill` for: those there are, where the time was over already."""
    if asked.minutes is None or not (asked.resume and asked.kept):
        return asked.outer_steps
    _, arrays = Checkpoints(asked.checkpoints).opened(writes=False).newest() or ({}, {})
    seconds = arrays.get("history.seconds", [])
    over = len(seconds) and seconds[-1] >= 60 * asked.minutes
    return len(seconds) if over else asked.outer_steps


def width_for(asked: Any, architecture: str, shape: tuple[int, ...]) -> int | None:
    """The width asked for, or one that fits the hardware; which is said."""
    fits = cpu_width(architecture, shape) if jax.default_backend() == "cpu" else None
    if fits is None:
        return asked.width
    usual = PAPER_WIDTH if asked.width is None else asked.width
    factor = round((usual / fits) ** 1.8)
    if asked.width is None:
        asked.say(
            f"Width {fits}, as this is a CPU: the paper's {usual} takes about {factor} times as "
            "long. --width chooses."
        )
        return fits
    if factor >= 3:
        warnings.warn(
            f"Width {usual} on a CPU takes about {factor} times as long as --width {fits}.",
            RuntimeWarning,
            stacklevel=2,
        )
    return asked.width
