"""A run's state on disk: written whole or not at all, checked when read, found again."""

import dataclasses
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._algorithm import State
from .._checks import check_counts, check_flags, check_number
from ..data import DataError
from ..data._paths import user_path
from ..io._files import damage_named, read_checked, sweep, write_checked
from ..io._lock import hold
from ._identity import numbers_of

FORMAT = "rcig_eqx/checkpoint/1"
_STATE = "state"  # what the names of its arrays begin with


def save_state(
    path: str | os.PathLike[str],
    state: State,
    *,
    card: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write every array of a state to one safetensors file, with a checksum.

    **Arguments:**

    - `path`: the file; it appears under its name only once it is complete.
    - `state`: of a run; read before it is donated to the next step.
    - `card`: anything JSON holds, given back by the reader.
    - `arrays`: anything else to keep beside the state, by name, of any shape.

    Raises `OSError` if it cannot be written, and leaves what stood there before.
    """
    header = {"format": FORMAT, "card": dict(card or {})}
    return write_checked(path, header, arrays_of(state) | dict(arrays or {}))


def load_state(path: str | os.PathLike[str], like: State) -> State:
    """Read a state written by [`save_state`][rcig_eqx.save_state].

    `like` is a state of the same recipe, such as `init` makes: its arrays are replaced, and all
    else in it, the functions, is kept. Raises `DataError` for a damaged file, and `ValueError` for
    a state of another shape, naming what differs.
    """
    _, arrays = read_checkpoint(path)
    return restore(arrays, like)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The card and the arrays of a checkpoint; `DataError` if it is damaged."""
    header, arrays = read_checked(path, FORMAT, "checkpoint")
    with damage_named(path, "checkpoint"):
        # What is ψ was called the coreset once.
        arrays = {k.replace("state.coreset", "state.psi"): v for k, v in arrays.items()}
        return dict(header["card"]), arrays


def restore(arrays: Mapping[str, np.ndarray], like: State) -> State:
    """`like` with its arrays replaced by those of a checkpoint."""

    def put(path: tuple, leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        name, data = _name(path), numbers_of(leaf)
        stored = arrays.get(name)
        if stored is None:
            raise ValueError(f"the checkpoint has no {name}: it is of another method or network.")
        if stored.dtype == _storable(data.dtype):
            stored = stored.view(data.dtype)
        if stored.shape != data.shape or stored.dtype != data.dtype:
            raise ValueError(
                f"{name} is {stored.dtype} {stored.shape} in the checkpoint and {data.dtype} "
                f"{data.shape} in this run: another network, method, optimizer or pool."
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jr.wrap_key_data(jnp.asarray(stored), impl=jr.key_impl(leaf))
        return jnp.asarray(stored)

    restored = jax.tree_util.tree_map_with_path(put, like)
    extra = {name for name in arrays if name.startswith(_STATE)} - arrays_of(restored).keys()
    if extra:
        raise ValueError(f"the checkpoint has {min(extra)}, which this run does not.")
    return restored


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where a run is kept, and whether it goes on from there.

    - `folder`: for checkpoints of the whole state.
    - `every`: seconds between two; one more is written when the run ends, unless it is killed or
      abandoned. 0 is after every step.
    - `keep`: how many of the newest stay in the folder.
    - `resume`: go on from the newest valid checkpoint there, or start if there is none. The run
      ends in the same bytes as one that was never interrupted, its `seconds` aside; on another
      number of devices, cores or threads, or by other versions, it warns that it does not. Other
      source of your own functions is a warning, too. More `steps` may be asked for; a default
      `method` stays the one of as many steps as were asked for first.
    """

    folder: str | os.PathLike[str]
    every: float = 300.0
    keep: int = 3
    resume: bool = False

    def __post_init__(self) -> None:
        check_number("every", self.every, lambda s: s >= 0, "seconds, at least 0")
        check_counts(keep=self.keep)
        check_flags(resume=self.resume)

    def opened(self, *, writes: bool) -> "CheckpointFolder":
        """The folder, of a process that writes or only reads."""
        folder = user_path(self.folder)
        return CheckpointFolder(folder, self.every, self.keep, writes, resume=self.resume)


@dataclasses.dataclass
class CheckpointFolder:
    """The checkpoints of one run, `step-00000100.safetensors` and so on, as `Checkpoints` asks."""

    folder: Path
    every: float = 300.0
    keep: int = 3
    writes: bool = True  # whether this process is the one of several that writes
    kept: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # into every one
    resume: bool = False
    written: float = dataclasses.field(default_factory=time.monotonic)

    def files(self) -> list[Path]:
        """All checkpoints, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def prepare(self) -> None:
        """Hold the folder and sweep up what a killed writer left.

        Raises `BlockingIOError` if another run holds it, `OSError` if it cannot be written.
        """
        if not self.writes:
            return
        try:
            hold(self.folder)
            sweep(self.folder, "step-*")
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot keep checkpoints in {self.folder} ({error.strerror}): choose another "
                "folder",
            ) from error

    def newest(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The newest valid checkpoint, or `None` if there are none.

        A damaged one is named in a warning and passed over for the one before. Raises `DataError`
        if there are some and all are damaged.
        """
        for path in self.files():
            try:
                return read_checkpoint(path)
            except DataError as error:
                warnings.warn(f"Passed over: {error}", RuntimeWarning, stacklevel=2)
        if files := self.files():
            raise DataError(
                f"All {len(files)} checkpoints in {self.folder} are damaged: choose another "
                "folder to start anew."
            )
        return None

    def check_room(self, state: State) -> None:
        """Raise `OSError` unless there is room for one checkpoint more than are kept."""
        if not self.writes:
            return
        arrays = [numbers_of(x) for _, x in _array_leaves(state)]
        size = sum(x.nbytes for x in (*arrays, *self.kept.values()))
        needed, free = (self.keep + 1) * size, shutil.disk_usage(self.folder).free
        free += sum(path.stat().st_size for path in self.files())
        if free < needed:
            raise OSError(
                f"{self.folder} has room for {free / 1e6:.0f} MB, and {self.keep} checkpoints and "
                f"one being written take {needed / 1e6:.0f} MB: free some space, keep fewer, or "
                "choose another folder."
            )

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self.written >= self.every

    def save(
        self, state: State, card: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> Path | None:
        """Write a checkpoint, then remove the oldest beyond `keep`.

        A later one was damaged, and is passed over.

        A disk that is full is no reason to lose the run: it is said in a warning, the checkpoints
        before stay, and the next interval tries again.
        """
        self.written = time.monotonic()
        if not self.writes:
            return None
        path = self.folder / f"step-{int(state.step):08d}.safetensors"
        try:
            save_state(path, state, card=card, arrays={**self.kept, **arrays})
            for old in [file for file in self.files() if file <= path][self.keep :]:
                old.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"No checkpoint: {error}.", RuntimeWarning, stacklevel=2)
            return None
        return path


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two cards say differently, by name, with dots into nested ones."""

    def flat(card: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in card.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield prefix + name, json.loads(json.dumps(value))

    a, b = dict(flat(there)), dict(flat(here))
    return {k: (a.get(k), b.get(k)) for k in a | b if a.get(k) != b.get(k)}


def _array_leaves(state: State) -> Iterator[tuple[tuple, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return ((path, leaf) for path, leaf in leaves if _is_array(leaf))


def arrays_of(state: State) -> dict[str, np.ndarray]:
    """Every array of a state by name, on the host; of random keys the integers behind them."""
    leaves = list(_array_leaves(state))
    data = jax.device_get([numbers_of(leaf) for _, leaf in leaves])
    named = zip(leaves, data, strict=True)
    return {_name(path): x.view(_storable(x.dtype)) for (path, _), x in named}


def _storable(dtype: np.dtype) -> np.dtype:
    """The dtype itself if it is NumPy's own, else, as of bfloat16, integers of its size."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _name(path: tuple) -> str:
    return _STATE + jax.tree_util.keystr(path)
