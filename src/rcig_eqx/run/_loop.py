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
from ..methods import AbstractAdaptiveMethod, AbstractMethod
from ..methods._method import is_linear_in_labels, trains_head, with_parts
from ._checkpoint import CheckpointFolder
from ._devices import Agreement, leads, on_mesh, shard_rows
from ._guard import CAUSES, SOLVE, explain
from ._memory import check_memory, memory_of
from ._progress import Callback, Progress, ProgressBar
from ._step import compiled_step, compiled_tune

History = dict[str, list[float]]  # a number a step, by name

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
        if first:
            self.bar.note(f"Going on from step {first:,} of {self.steps:,}.")
        with interruptible(say=not self.bar.console.quiet) as interrupted:
            try:
                for number in range(first + 1, self.steps + 1):
                    batch = self._next_batch(number)
                    if number == first + 1:
                        state, step = self._compile(state, batch)
                    with on_mesh(self.mesh):
                        state, metrics = step(batch, state)
                    flush((number, metrics))
                    report = Progress(number, self.steps, metrics, state, so_far)
                    stop = [callback(report) for callback in self.callbacks]
                    # This step has been read by a process that was asked for what there is so far.
                    if agreed(any(stop) or interrupted()) or gave_up(history, first, number - 1):
                        break
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
                self.bar.note(f"Stopped by a signal after step {number:,} of {self.steps:,}.")
        if leads(self.mesh):
            say_what_fell_short(history, first, method=state.recipe.method)
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

    def _compile(self, state: State, batch: tuple[Array, ...]) -> tuple[State, Callable]:
        """What comes before the first step: learning rates found, the step compiled.

        Called as it is and not by `filter_jit`, which waits for the device at every call.
        """
        with on_mesh(self.mesh):
            if int(state.step) == 0 and isinstance(state.recipe.method, AbstractAdaptiveMethod):
                state = compiled_tune()(batch, state)
            if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
                return state, compiled_step()  # as a debugger wants it: not compiled at all
            step = compiled_step().lower(batch, state).compile()
        device = self.mesh.local_devices[0] if self.mesh else None
        check_memory(memory_of(step.compiled, batch), len(batch[0]), device)
        return state, step


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


def say_what_fell_short(
    history: History, first: int = 0, *, method: AbstractMethod | None = None
) -> None:
    """Warn of rejected steps, of a run given up, and of solves that fell short or do not match.

    `first` is the step that the run went on from.
    """
    rejected = np.flatnonzero(history.get("rejected", [])).tolist()
    missed = np.asarray(history.get("converged", [])) == 0
    if len(rejected):
        shown = [explain(i + 1, {k: v[i] for k, v in history.items()}) for i in rejected[:3]]
        more = f"; and {len(rejected) - 3} more" if len(rejected) > 3 else ""
        what = "1 step was" if len(rejected) == 1 else f"{len(rejected)} steps were"
        text = f"{what} rejected: {'; '.join(shown)}{more}."
        if gave_up(history, first):
            advice = "Lower the optimiser's learning rate or raise the method's l2_rate."
            if missed.any() and CAUSES[int(history["cause"][rejected[-1]])] == SOLVE:
                advice = "What to change in the solver is said next."
            text = (
                f"Stopped: {_GIVE_UP_AFTER} steps in a row had no finite hypergradient. What had "
                f"been distilled before is returned. {advice} {text}"
            )
        warnings.warn(text, RuntimeWarning, stacklevel=5)
    if missed.any():
        residuals = {"residual": "relative residual", "inner_residual": "the inner one"}
        if "inner_monotone" in history:  # Adam's steps, as many as were asked for
            del residuals["inner_residual"]
        worst = "".join(
            f", {of} {_range(np.asarray(history[name])[missed])}"
            for name, of in residuals.items()
            if name in history
        )
        remedy = (
            "Where it stopped at its cap, raise the max_steps of the method's solver, for rcig as "
            "in solver=DualCG(rtol=1e-4, max_steps=1000, label_rtol=1e-2); a Nystrom needs a "
            "higher rank, a DualCG under a trained head (cig) an rtol of 1e-6; where it broke "
            "down before, as on the indefinite Hessian of a network that is not linearised, pass "
            "the method gauss_newton=True or damping; or choose another solver."
        )
        if "step_times_curvature" in history:
            # Later ones may be those of a λ that was raised after a rejected step.
            first_missed = history["step_times_curvature"][history["converged"].index(0.0)]
            remedy = (
                "A Neumann series needs a positive definite Hessian and its step times the largest "
                f"curvature below 2; that was {first_missed:.1f} when it first failed. "
                "Leave step_size out or make it smaller, or add damping or gauss_newton=True."
            )
        warnings.warn(
            f"A solve failed or stopped at its cap in {missed.sum()} of {missed.size} steps"
            f"{worst}: the hypergradients there were not what was asked for. {remedy}",
            RuntimeWarning,
            stacklevel=5,
        )
    if method is not None and (text := _magnified(history, method)):
        warnings.warn(text, RuntimeWarning, stacklevel=5)
    for name, words in (("inner", "inner"), ("solver", "inverse-Hessian")):
        diverged = history.get(f"{name}_diverged", [])
        if sum(diverged) > len(diverged) / 3:
            warnings.warn(
                f"The {words} descent ended above its start in {sum(diverged):.0f} of "
                f"{len(diverged)} steps: its hypergradients are of little worth. Give the method a "
                f"lower rate, as in {name}=Adam(1e-4).",
                RuntimeWarning,
                stacklevel=5,
            )


def _magnified(history: History, method: AbstractMethod) -> str:
    """A warning of a close inverse-Hessian solve at a point far from the inner minimum, or "".

    Where the head is solved for, the inner problem leaves nothing in its directions: no such harm.
    """
    trained = [part for part in with_parts(method) if trains_head(part)]
    if not trained or not {"residual", "inner_residual"} <= history.keys():
        return ""
    both = np.array([history["inner_residual"], history["residual"]])
    both = both[:, (both[0] > 0) & np.isfinite(both).all(0)]  # zero in a head-only step
    if not both.size:
        return ""
    inner, solve = np.median(both, 1)
    # Of a quadratic the gradient is worth little above the first; others bear more.
    quadratic = all(map(is_linear_in_labels, trained))
    if not (inner > (2e-4 if quadratic else 1e-2) and solve < 0.1):
        return ""
    return (
        f"H⁻¹g was solved to {solve:.0e} where the inner problem was to {inner:.0e} (median "
        "relative residuals). With a trained head (cig, vig) a close solve magnifies what the "
        "inner one leaves, up to a gradient of the wrong sign. Bring the inner one below 1e-4: "
        "inner=DualCholesky() or DualCG(1e-4) for cig with a SquaredError, more steps of Adam "
        "else; or leave both short, as solver=Adam() does."
    )


def _range(residuals: np.ndarray) -> str:
    """The largest, and how many are no numbers."""
    known = residuals[np.isfinite(residuals)]
    said = [f"up to {known.max():.1e}"] if known.size else []
    if lost := residuals.size - known.size:
        said.append(f"not finite in {lost}")
    return ", ".join(said)


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
