"""What a run reports while it goes on."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import rich.progress
from jaxtyping import Array
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
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
    """

    step: int
    steps: int
    metrics: dict[str, Array]
    state: State
    result: Callable[[], DistillResult]
    history: Mapping[str, list[float]]
    at_end: Callable[[Callable[[], None]], Any]


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
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=None, numbers=_COMPILING)
        self.last_line = 0.0
        self.first: tuple[int, float] | None = None

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
        if self.first is None:  # the first step compiles: leave it out of the rate
            self.first = (step, seconds)
        timed, elapsed = step - self.first[0], seconds - self.first[1]
        numbers = "  ".join(
            f"{name} {metrics[key]:{spec}}"
            for key, name, spec in self.shown
            if key in metrics and not (metrics[key] == 0 and key in _OF_A_SOLVE)
        )
        if elapsed > 0:
            numbers += f"  {timed / elapsed:.2g} steps/s"
        self.bar.update(self.task, completed=step, total=steps, numbers=numbers)
        due = seconds - self.last_line >= 10 or step in (1, steps)
        if not self.console.is_terminal and due:
            self.last_line = seconds
            left = f", {(steps - step) * elapsed / timed:.0f} s left" if elapsed > 0 else ""
            self.console.print(f"{step}/{steps}  {numbers}  {seconds:.0f} s{left}", soft_wrap=True)

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
