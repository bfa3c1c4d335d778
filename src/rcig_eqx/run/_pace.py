"""How long a run will take, and what memory: said once, after its first few steps."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._algorithm import State
from ._memory import MemoryEstimate
from ._progress import ProgressBar

_TIMED, _LONG_ENOUGH = 3, 10.0  # steps after the first, or seconds of fewer
_LONG = 30.0  # seconds that are worth saying
_WORTH_TRYING = 50  # steps of a later stage, of which one is taken to time it


@dataclasses.dataclass
class Pace:
    """Says how long a run will take, as soon as that is known.

    - `bar`: where it is said, and what has timed the steps.
    - `steps`: how many there are to be in all.
    - `alone`: whether the run is on one device, so that a step can be tried out.
    - `memory`: of a step, if it was compiled ahead.
    """

    bar: ProgressBar
    steps: int
    alone: bool
    memory: MemoryEstimate | None = None
    said: bool = False

    def look(self, step: Callable[..., Any], batch: Any, state: State) -> None:
        """After a step: say it, if the time has come.

        Where a later stage of the method costs otherwise, one step of it is taken with a copy of
        the state, timed, and forgotten.
        """
        timed, elapsed = self.bar.timed
        if self.said or timed < 1 or (timed < _TIMED and elapsed < _LONG_ENOUGH):
            return
        self.said = True
        if self.bar.console.quiet:
            return
        done, until, later = int(state.step), self.steps, None
        if turn := state.recipe.chosen()[0].turn:
            until, method = min(self.steps, done + turn[0]), turn[1]
            tried = self.alone and self.bar.deadline is None
            if tried and self.steps - until >= _WORTH_TRYING:
                later = _seconds_of(step, batch, eqx.tree_at(_method_of, state, method))
            self.bar.turns(until, later)
        if text := self._text(done, until, elapsed / timed, later):
            self.bar.note(f"{text}{self._memory()}.")

    def _text(self, done: int, until: int, each: float, later: float | None) -> str:
        if self.bar.deadline is not None:
            return f"The run ends after {self.bar.deadline / 60:.3g} min"
        head, tail = until - done, self.steps - until
        if tail and later is None:
            seconds, what = head * each, f"the first {until:,} of {self.steps:,} steps"
        else:
            seconds, what = head * each + tail * (later or 0.0), f"{head + tail:,} more steps"
        if later is not None and tail:
            what += f": {head:,} at {each:.2g} s each, then {tail:,} at {later:.2g} s"
        return f"About {minutes(seconds)} for {what}" if seconds >= _LONG else ""

    def _memory(self) -> str:
        total = self.memory.total if self.memory else 0
        size = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
        return f". A step takes about {size} of memory" if total else ""


def minutes(seconds: float) -> str:
    """A time in words, rounded."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _method_of(state: State) -> Any:
    return state.recipe.method


def _seconds_of(step: Callable[..., Any], batch: Any, state: State) -> float:
    """Of one step with a copy of the state, whose memory the step takes over."""
    copied = jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, state)
    jax.block_until_ready(eqx.filter(copied, eqx.is_array))
    began = time.perf_counter()
    jax.block_until_ready(eqx.filter(step(batch, copied), eqx.is_array))
    return time.perf_counter() - began
