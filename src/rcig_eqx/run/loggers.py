"""What writes the numbers of a run down while it goes on: callbacks, and their registry."""

import abc
import csv as csv_files
import importlib
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from .._checks import check_number
from .._registry import Registry
from ..data._paths import user_path
from ..methods._method import History
from ._progress import Callback, Progress

Row = dict[str, int | float]
"""The numbers of one step by name, `step` first, which counts from 1."""


class AbstractLogger(abc.ABC):
    """A callback that writes the numbers of every step down.

    It writes what the run has read from the device already, one step late and the last one at the
    end, and so waits for nothing. Of several processes one writes. An error after the start is a
    warning and ends the logger: the run goes on.
    """

    _history: History | None = None
    _written = 0  # steps
    _failed = False

    def __call__(self, progress: Progress) -> None:
        """Write the steps that have been read since the last call."""
        if jax.process_index() != 0:
            return
        if progress.history is not self._history:  # the first step of a run
            self._history, self._failed = progress.history, False
            self._written = progress.step - 1
            # Another callback may have asked for this step already.
            self.start(itertools.islice(_rows(progress.history, 0), self._written))
            progress.at_end(self._end)
        self._write()

    @abc.abstractmethod
    def start(self, earlier: Iterable[Row]) -> None:
        """Begin a run. `earlier` has the steps that a resumed run took before."""

    @abc.abstractmethod
    def write(self, row: Row) -> None:
        """Write one step."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End a run."""

    def _write(self) -> None:
        if self._history is not None and not self._failed:
            self._attempt(self._write_read)

    def _write_read(self) -> None:
        for row in _rows(self._history or {}, self._written):
            self.write(row)
            self._written += 1

    def _attempt(self, do: Callable[[], None]) -> None:
        """A full disk, or a service that is gone, is said once and ends no run."""
        try:
            do()
        except Exception as error:
            if not self._failed:
                warnings.warn(f"{self!r} has stopped: {error}", RuntimeWarning, stacklevel=3)
            self._failed = True

    def _end(self) -> None:
        self._write()
        self._history = None
        self._attempt(self.stop)


def _rows(history: History, first: int) -> Iterator[Row]:
    """The steps after the first so many."""
    steps = len(history.get("seconds", ()))
    for i in range(first, steps):
        # What an earlier version did not measure is known of the last steps alone.
        known = {name: x[i - steps] for name, x in history.items() if len(x) >= steps - i}
        yield {"step": i + 1, **known}


class _File(AbstractLogger):
    """A file of lines. A run from its beginning replaces it, one that is resumed goes on in it."""

    name: str

    def __init__(self, path: str | os.PathLike[str]):
        path = user_path(path)
        self.path = path if path.suffix == Path(self.name).suffix else path / self.name
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def start(self, earlier: Iterable[Row]) -> None:
        """Write the earlier steps anew: a killed run may have written more than it kept."""
        self._file = self.path.open("w", encoding="utf-8", newline="")
        for row in earlier:
            self.write(row)

    def stop(self) -> None:
        """Close the file."""
        self._file.close()


class Jsonl(_File):
    """See [`jsonl`][rcig_eqx.run.loggers.jsonl]."""

    name = "metrics.jsonl"

    def write(self, row: Row) -> None:
        """Write one line of JSON, `null` for what is not finite."""
        finite = {name: x if math.isfinite(x) else None for name, x in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()


class Csv(_File):
    """See [`csv`][rcig_eqx.run.loggers.csv]."""

    name = "metrics.csv"
    _table: csv_files.DictWriter | None = None

    def write(self, row: Row) -> None:
        """Write one line, after the head where it is the first."""
        if self._table is None:
            self._table = csv_files.DictWriter(self._file, list(row), extrasaction="ignore")
            self._table.writeheader()
        self._table.writerow(row)
        self._file.flush()

    def stop(self) -> None:
        """Close the file."""
        super().stop()
        self._table = None


class _Charts(AbstractLogger):
    """A service that draws curves: a point every so many seconds, the mean of its steps."""

    def __init__(self, every: int | float):
        check_number("every", every, lambda x: x >= 0, "a number of seconds, 0 for every step")
        self.every, self._rows, self._sent = every, [], 0.0

    def write(self, row: Row) -> None:
        """Take one step, and send a point where one is due."""
        self._rows.append(row)
        if time.monotonic() - self._sent >= self.every:
            self._send()

    def _send(self) -> None:
        rows, self._rows, self._sent = self._rows, [], time.monotonic()
        if rows:
            names = rows[-1].keys() - {"step"}
            means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}
            self.point(int(rows[-1]["step"]), means)

    def stop(self) -> None:
        """Send what is left, and end."""
        self._send()
        self.close()

    @abc.abstractmethod
    def point(self, step: int, numbers: dict[str, float]) -> None:
        """Add a point to the curve of each number."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the connection."""


class TensorBoard(_Charts):
    """See [`tensorboard`][rcig_eqx.run.loggers.tensorboard]."""

    def __init__(self, folder: str | os.PathLike[str], every: int | float):
        super().__init__(every)
        self.folder, self._library = user_path(folder), _library("tensorboardX", "tensorboard")

    def __repr__(self) -> str:
        return f"TensorBoard({str(self.folder)!r})"

    def start(self, earlier: Iterable[Row]) -> None:
        """Open a file of events. TensorBoard drops what a killed run logged after it was saved."""
        done = sum(1 for _ in earlier)
        purge = done + 1 if done else None
        # A file is named by its second: one of the same second would be replaced.
        own = {"purge_step": purge, "filename_suffix": f".{time.time_ns()}"}
        self._writer = self._library.SummaryWriter(str(self.folder), **own)

    def point(self, step: int, numbers: dict[str, float]) -> None:
        """Write a scalar of each number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandB(_Charts):
    """See [`wandb`][rcig_eqx.run.loggers.wandb]."""

    def __init__(self, every: int | float, options: dict[str, Any]):
        super().__init__(every)
        self.options, self._library = options, _library("wandb", "wandb")

    def __repr__(self) -> str:
        return f"WandB({self.options})"

    def start(self, earlier: Iterable[Row]) -> None:
        """Begin a run there."""
        self._run = self._library.init(**self.options)

    def point(self, step: int, numbers: dict[str, float]) -> None:
        """Log the numbers."""
        self._run.log(numbers, step=step)

    def close(self) -> None:
        """Finish the run there."""
        self._run.finish()


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"This logger needs {name}: pip install 'rcig-eqx[{extra}]'.") from error


def jsonl(path: str | os.PathLike[str]) -> Jsonl:
    """Lines of JSON, one per step, `null` for what is not finite. `tail -f` shows them at once.

    `path` is a file `….jsonl`, or a folder, in which it is `metrics.jsonl`. A run from its
    beginning replaces the file. A resumed run continues it and repeats no step.
    """
    return Jsonl(path)


def csv(path: str | os.PathLike[str]) -> Csv:
    """A table with a line per step, as `jsonl` writes it: a file `….csv`, or a folder, in which it
    is `metrics.csv`."""
    return Csv(path)


def tensorboard(folder: str | os.PathLike[str], *, every: int | float = 1.0) -> TensorBoard:
    """Scalars for TensorBoard, in a folder of their own.

    A point every so many seconds is the mean of the steps since the last one; `every=0` writes
    each step. Needs tensorboardX, the extra `tensorboard`, and no PyTorch.
    """
    return TensorBoard(folder, every)


def wandb(project: str = "rcig_eqx", *, every: int | float = 1.0, **options: Any) -> WandB:
    """A run in Weights & Biases, the extra `wandb`; points as of `tensorboard`.

    `options` are further ones of `wandb.init`, such as `name`, `dir` or `mode="offline"`; the
    environment variable `WANDB_MODE=offline` does the same. A resumed run logs its own steps, in
    the same run there with `id=…, resume="allow"`.
    """
    return WandB(every, {"project": project, **options})


def _tensorboard_in(folder: Path) -> TensorBoard:
    return tensorboard(folder / "tensorboard")


def _wandb_in(folder: Path) -> WandB:
    return wandb(name=folder.name, dir=folder)


LOGGERS: Registry[Callback] = Registry(
    "loggers", jsonl=jsonl, csv=csv, tensorboard=_tensorboard_in, wandb=_wandb_in
)
"""Loggers by name: functions from a run's folder to a callback."""

__all__ = ["LOGGERS", "AbstractLogger", "csv", "jsonl", "tensorboard", "wandb"]
