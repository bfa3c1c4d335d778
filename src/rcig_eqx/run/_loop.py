"""The loop around `step`: metrics, callbacks, checkpoints, signals, and what to say at the end."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from .._algorithm import State
from ..data import DataError
from ..io._result import DistillResult
from ..methods import AbstractMethod
from ._checkpoint import CheckpointFolder
from ._devices import Agreement, leads, on_mesh, shard_rows
from ._guard import CAUSES, SOLVE, explain
from ._memory import MemoryEstimate, check_memory, memory_of
from ._pace import Pace
from ._progress import Callback, Progress, ProgressBar, of_steps
from ._step import compiled_step, compiled_tune

History = dict[str, list[float]]  # a number per step, by name

_GIVE_UP_AFTER = 10  # steps in a row without a finite hypergradient


@dataclasses.dataclass
class Loop:
    """What a run does around its steps.

    - `batches`: preprocessed outer batches, from the first one that is still to be taken.
    - `steps`: how many steps there are to be in all.
    - `result`: makes a `DistillResult` of a state and a history.
    - `checkpoints`: where to keep them, if anywhere; `card` goes into each.
    - `mesh`: of several devices, if there are; the rows of `batch_size` are divided over it.
    """

    batches: Iterator[tuple[Any, Any]]
    steps: int
    result: Callable[[State, History], DistillResult]
    callbacks: Sequence[Callback]
    bar: ProgressBar
    checkpoints: CheckpointFolder | None
    card: Mapping[str, Any]
    mesh: Mesh | None
    batch_size: int

    def run(self, state: State, history: History) -> tuple[State, History]:
        """Take the steps that are left. Metrics are read one step late: the device never waits."""
        number = first = int(state.step)
        before = history["seconds"][-1] if number else 0.0
        began = time.perf_counter() - before
        pending: tuple[int, dict[str, Array]] | None = None
        told = False  # of the first step whose solve fell short

        def flush(
            following: tuple[int, dict[str, Array]] | None = None, *, show: bool = True
        ) -> None:
            nonlocal pending, told
            done, pending = pending, following  # before anything that may fail
            if not done:
                return
            numbers = jax.device_get(done[1])
            record(history, numbers, time.perf_counter() - began)
            if show:
                self.bar.update(done[0], self.steps, _last(history))
            if show and history["cause"][-1]:
                what = "Rejected" if history["rejected"][-1] else "Left out of"
                self.bar.note(f"{what} {explain(done[0], _last(history))}.")
            if show and not told and history.get("converged", [])[-1:] == [0.0]:
                told = True
                self.bar.note(
                    f"A solve failed or stopped at its cap in step {done[0]}. The run goes on; at "
                    "its end there is how often that was, and what to change."
                )

        def so_far() -> DistillResult:
            flush()
            return self.result(state, history)

        def save() -> Any:
            flush(show=False)  # nothing that is shown may keep it from being kept
            if self.checkpoints is None or lost(state):
                return None
            arrays = {f"history.{k}": np.asarray(v, np.float64) for k, v in history.items()}
            return self.checkpoints.save(state, self.card, arrays)

        saved, agreed, step = first, Agreement(self.mesh), compiled_step()
        pace = Pace(self.bar, self.steps, alone=self.mesh is None)
        if first:
            self.bar.note(f"Going on from {of_steps(first, self.steps)}.")
        quiet = self.bar.console.quiet
        with contextlib.ExitStack() as end, interruptible(say=not quiet) as interrupted:
            try:
                for number in range(first + 1, self.steps + 1):
                    batch = self._next_batch(number)
                    if number == first + 1:
                        state, step, pace.memory = self._compile(state, batch)
                        began = time.perf_counter() - before  # of the steps alone
                    with on_mesh(self.mesh):
                        state, metrics = step(batch, state)
                    flush((number, metrics))
                    seconds = time.perf_counter() - began
                    report = Progress(
                        number, self.steps, metrics, state, so_far, history, end.callback,
                        seconds, self.bar.ends_at,
                    )  # fmt: skip
                    stop = [_is_true(callback(report)) for callback in self.callbacks]
                    # This step has been read by a process that was asked for what there is so far.
                    if agreed(any(stop) or interrupted()) or gave_up(history, first, number - 1):
                        break
                    pace.look(step, batch, state)
                    if self.checkpoints and self.checkpoints.due:
                        flush()
                        saved = number if save() else saved
            except (Exception, SystemExit) as error:
                if not lost(state) and int(state.step) > first and (path := save()):
                    error.add_note(f"The run up to here is in {path}: resume it to go on.")
                raise
            try:
                flush()
            finally:
                if number > saved:
                    save()
            if interrupted() and number < self.steps:
                self.bar.note(f"Stopped by a signal after {of_steps(number, self.steps)}.")
        if leads(self.mesh):
            say_what_fell_short(history, state.recipe.chosen()[0], first)
        return state, history

    def _next_batch(self, number: int) -> tuple[Array, ...]:
        try:
            images, labels = next(self.batches)
        except DataError:
            raise
        except Exception as error:  # a file gone, a reader dead: whatever the source may raise
            raise DataError(
                f"The batch of step {number} could not be read: {type(error).__name__}: {error}"
            ) from error
        labels = np.asarray(labels, np.int32)
        return tuple(shard_rows(x, self.mesh, self.batch_size) for x in (images, labels))

    def _compile(
        self, state: State, batch: tuple[Array, ...]
    ) -> tuple[State, Callable, MemoryEstimate | None]:
        """What comes before the first step: learning rates found, the step compiled and measured.

        Called as it is and not by `filter_jit`, which waits for the device at every call.
        """
        with on_mesh(self.mesh):
            if int(state.step) == 0 and state.recipe.chosen()[0].adapts:
                state = compiled_tune()(batch, state)
            if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
                return state, compiled_step(), None  # as a debugger wants it: not compiled at all
            step = compiled_step().lower(batch, state).compile()
        device = self.mesh.local_devices[0] if self.mesh else None
        memory = memory_of(step.compiled, batch)
        check_memory(memory, len(batch[0]), device)
        return state, step, memory


def record(history: History, numbers: Mapping[str, np.ndarray], seconds: float) -> None:
    """Add a step's numbers to the history."""
    for name, value in {**numbers, "seconds": seconds}.items():
        history.setdefault(name, []).append(float(value))


def _last(history: History) -> dict[str, float]:
    return {name: values[-1] for name, values in history.items()}


def gave_up(history: Mapping[str, Any], first: int = 0, end: int | None = None) -> bool:
    """Whether so many steps in a row were rejected that a run ends, of those in first..end.

    One more step may have followed them: metrics are read late.
    """
    rejected = history.get("rejected", [])
    end = len(rejected) if end is None else end
    lately = rejected[max(first, end - _GIVE_UP_AFTER - 1) : end]
    windows = lately[-_GIVE_UP_AFTER:], lately[:_GIVE_UP_AFTER]
    return any(len(window) == _GIVE_UP_AFTER and all(window) for window in windows)


def lost(state: State) -> bool:
    """Whether the step that made the state failed, or one that did not end took its memory."""
    try:
        jax.block_until_ready(eqx.filter(state, eqx.is_array))
    except RuntimeError:
        return True
    return False


def say_what_fell_short(history: History, method: AbstractMethod, first: int = 0) -> None:
    """Warn of rejected steps, of a run given up, of solves that fell short, in the method's words.

    `first` is the step that the run went on from.
    """
    short = np.asarray(history.get("converged", [])) == 0
    said = [_rejected(history, first, short), _fell_short(history, short, method)]
    for text in [*said, *method.warnings(history)]:
        if text:
            warnings.warn(text, RuntimeWarning, stacklevel=5)


def _rejected(history: History, first: int, short: np.ndarray) -> str:
    """Of the steps that were rejected, and of a run that was given up."""
    rejected = np.flatnonzero(history.get("rejected", [])).tolist()
    if not rejected:
        return ""
    shown = [explain(i + 1, {k: v[i] for k, v in history.items()}) for i in rejected[:3]]
    more = f"; and {len(rejected) - 3} more" if len(rejected) > 3 else ""
    what = "1 step was" if len(rejected) == 1 else f"{len(rejected)} steps were"
    text = f"{what} rejected: {'; '.join(shown)}{more}."
    if not gave_up(history, first):
        return text
    advice = "Lower the optimizer's learning rate or raise the method's l2_rate."
    if short.any() and CAUSES[int(history["cause"][rejected[-1]])] == SOLVE:
        advice = "What to change in the solver is said next."
    return (
        f"Stopped: {_GIVE_UP_AFTER} steps in a row had no finite hypergradient. What had "
        f"been distilled before is returned. {advice} {text}"
    )


def _fell_short(history: History, short: np.ndarray, method: AbstractMethod) -> str:
    """Of the solves that failed or stopped at their cap."""
    if not short.any():
        return ""
    residuals = {"residual": ("relative residual", "converged")}
    residuals["inner_residual"] = ("the inner one", "inner_converged")
    worst = "".join(
        f", {of} {_range(np.asarray(history[name])[short])}"
        for name, (of, flag) in residuals.items()
        if name in history and not all(history.get(flag, [0.0]))
    )
    return (
        f"A solve failed or stopped at its cap in {short.sum()} of {short.size} steps{worst}: the "
        f"hypergradients there were not what was asked for. {method.advice(history)}".rstrip()
    )


def _range(residuals: np.ndarray) -> str:
    """The largest, and how many are no numbers."""
    known = residuals[np.isfinite(residuals)]
    said = [f"up to {known.max():.1e}"] if known.size else []
    if lost := residuals.size - known.size:
        said.append(f"not finite in {lost}")
    return ", ".join(said)


def _is_true(said: Any) -> bool:
    """Whether a callback said `True`, and nothing else that counts as such, like a loss."""
    return np.asarray(said).dtype == np.bool_ and bool(said)


received: list[int] = []  # signals that ended runs of this process; a command's status says which


@contextlib.contextmanager
def interruptible(say: bool = False) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM within sets a flag; the second does what it always does.

    SIGHUP sets it too, however often it comes, unless it was ignored, as under nohup. Signals are
    added to `received`.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # signals belong to the main thread
        return
    always = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    hangup: Any = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup:
        always[hangup] = signal.SIG_DFL
    handlers = {number: signal.getsignal(number) for number in always}
    before = {n: usual for n, usual in handlers.items() if usual is not None}  # else not Python's
    if before.get(hangup) == signal.SIG_IGN:
        del before[hangup]

    def handler(number: int, _: object) -> None:
        pressed.set()
        received.append(number)
        # A job in the background starts with SIGINT ignored: twice still interrupts.
        usual = before[signal.Signals(number)]
        if number != hangup:  # which a terminal that closes sends more than once
            signal.signal(number, usual if callable(usual) else always[signal.Signals(number)])
        # By Ctrl-C a person knows of it; of a job told to end, the log alone tells.
        if say or number != signal.SIGINT:
            # Not by print, which a signal may have come in the middle of.
            with contextlib.suppress(OSError):
                os.write(2, b"\nStopping after this step; once more stops at once.\n")

    for number in before:
        signal.signal(number, handler)
    try:
        yield pressed.is_set
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
