"""What a run reports while it goes on."""

import dataclasses
import datetime
import sys
from collections.abc import Callable, Mapping
from typing import Any

import rich.progress
from jaxtyping import Array
from rich.console import Console
from rich.progress import (
    BarColumn,
    TextColumn,
    TimeElapsedColumn,
)

from .._algorithm import State
from .._console import console as make_console
from ..io._result import DistillResult
from ..io._terminal import Unfailing


@dataclasses.dataclass(frozen=True)
class Progress:
    """One step, as callbacks see it.

    - `step`: steps done, from 1; `steps`: of how many.
    - `metrics`: scalars by name, such as `loss`, `accuracy` (a fraction of one), `iterations` and
      `residual`; on the device, so that reading one waits for the step to finish.
    - `state`: the whole state. The next step takes its memory over: use it during the call, and
      copy what must outlive it.
    - `result`: a function that makes the `DistillResult` of the run so far.
    - `history`: a list of numbers by name, one per step, `seconds` among them; as far as they have
      been read from the device, which is one step late. Reading it waits for nothing.
    - `at_end`: a function that takes one to call at the end of the run, whatever ends it.
    - `seconds`: since the first step began, those before the run was resumed included.
    - `ends_at`: a function that tells the progress bar after how many seconds the run will end.
    """

    step: int
    steps: int
    metrics: dict[str, Array]
    state: State
    result: Callable[[], DistillResult]
    history: Mapping[str, list[float]]
    at_end: Callable[[Callable[[], None]], Any]
    seconds: float
    ends_at: Callable[[int | float], None]


OPEN = 10**7  # steps of a run that its time ends: more than any has


def of_steps(step: int, steps: int) -> str:
    """A step in words, and of how many where that is no open number."""
    return f"step {step:,}" + (f" of {steps:,}" if steps < OPEN else "")


Callback = Callable[[Progress], bool | None]
"""Called after every step. Returning `True` ends the run with what there is."""


class ProgressBar:
    """A line in the terminal: loss, accuracy, residual, steps per second, time left.

    Where there is no terminal it prints a plain line every ten seconds instead.
    """

    def __init__(self, *, enabled: bool = True, console: Console | None = None):
        shown: Any = Unfailing(sys.stderr) if sys.stderr else None
        self.console = console or make_console(file=shown, stderr=True, quiet=not enabled)
        wide = self.console.width >= 120 or not self.console.is_terminal
        self.shown = _SHOWN if wide else _SHOWN[:2]  # what a narrow terminal has room for
        self.bar = rich.progress.Progress(
            *((TextColumn("distilling"), BarColumn(bar_width=20)) if wide else ()),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=None, numbers=_COMPILING, count="", left="")
        self.last_line = 0.0
        self.deadline: float | None = None  # seconds after which the run ends
        self.timed = (0, 0.0)  # steps of the present stage since its first, and their seconds
        self._first: tuple[int, float] | None = None
        self._turn: tuple[int, float | None] | None = None

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        if not self.console.is_terminal:
            self.console.print(_COMPILING)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.bar.disable:  # else rich before 14 ends with an empty line
            self.bar.stop()

    def update(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Show step number `step` of `steps`; `metrics["seconds"]` is the time it ended."""
        seconds = metrics["seconds"]
        # The first step compiles, and the first after a turn costs otherwise: both begin anew.
        if self._first is None or (self._turn and step == self._turn[0] + 1):
            self._first = (step, seconds)
        self.timed = timed, elapsed = step - self._first[0], seconds - self._first[1]
        numbers = "  ".join(
            f"{name} {metrics[key]:{spec}}"
            for key, name, spec in self.shown
            if key in metrics and not (metrics[key] == 0 and key in _OF_A_SOLVE)
        )
        if elapsed > 0:
            numbers += f"  {timed / elapsed:.2g} steps/s"
        open_ended = self.deadline is not None and steps >= OPEN
        count = f"step {step}" if open_ended else f"{step}/{steps}"
        done, of = (seconds, self.deadline) if open_ended else (step, steps)
        left = self._left(step, steps, seconds)
        shown = "" if left is None else f"{datetime.timedelta(seconds=int(left))} left"
        fields: dict[str, Any] = {"numbers": numbers, "count": count, "left": shown}
        self.bar.update(self.task, completed=done, total=of, **fields)
        due = seconds - self.last_line >= 10 or step in (1, steps)
        if not self.console.is_terminal and due:
            self.last_line = seconds
            said = "" if left is None else f", {left:.0f} s left"
            self.console.print(f"{count}  {numbers}  {seconds:.0f} s{said}", soft_wrap=True)

    def _left(self, step: int, steps: int, seconds: float) -> float | None:
        """Seconds until the run ends, as far as that is known."""
        until, later = self._turn or (steps, None)
        if step > until:
            until, later = steps, None
        known = [] if self.deadline is None else [max(0.0, self.deadline - seconds)]
        timed, elapsed = self.timed
        if elapsed > 0 and (until == steps or later is not None):
            ahead = (steps - until) * (later or 0.0)
            known.append((until - step) * elapsed / timed + ahead)
        return min(known, default=None)

    def ends_at(self, seconds: int | float) -> None:
        """The run will end after so many seconds."""
        self.deadline = seconds

    def turns(self, step: int, seconds: float | None) -> None:
        """Steps after this one take so many seconds each, `None` if that is not known."""
        self._turn, self._first = (step, seconds), None

    def note(self, text: str) -> None:
        """Say something once, above the bar."""
        self.bar.console.print(text, soft_wrap=True)


_COMPILING = "compiling the first step (Ctrl-C waits for it)"
_SHOWN = (
    ("loss", "loss", ".3f"),
    ("accuracy", "accuracy", ".1%"),
    ("residual", "residual", ".0e"),
    ("iterations", "iterations", ".0f"),
)
_OF_A_SOLVE = ("residual", "iterations")  # zero where a step needed none
