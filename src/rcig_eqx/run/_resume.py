"""Whether a checkpoint is of this very run, and how the run goes on from it."""

import contextlib
import hashlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._algorithm import State
from ..data import AbstractImages, AbstractPreprocess, Dataset, from_state, to_state
from ..io._files import under, within
from ._checkpoint import CheckpointFolder, arrays_of, differences, restore
from ._identity import LIBRARIES, identity_of
from ._step import tuned_structure

_DECODES = "pillow"  # an optional part, whose versions decode JPEG files differently
_THREADS = ("XLA_FLAGS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What an earlier version recorded in other words, or not at all.
_REWORDED = ("optimizer", "average", "parameterization", "initialization")
_SKETCHED = ("training images", "starting state")
_STRATEGIES = ("method", "model", "optimizer", "pool", "average", "parameterization", "augment")
_CLOSE = 0.01  # of the norm: what versions and threads leave between the same numbers


def run_card(
    settings: Mapping[str, Any],
    train: Any,
    seen: Dataset,
    state: State,
    preprocess: AbstractPreprocess,
) -> dict[str, Any]:
    """What makes a run the run it is, in plain values.

    `settings` are what `distill` was asked for: the number of steps may change between two parts of
    a run, all else may not. `seen` is the part of `train` that is in memory, `state` that before
    the first step, which covers the key and every number passed. Functions of a user's have no
    names to compare: `identity_of` has what they carry and their source.
    """
    marks = train.marks if isinstance(train, AbstractImages) else ()
    start, recipe = list(arrays_of(state).values()), state.recipe
    config, fitted = to_state(preprocess)
    return {
        "settings": {name: value for name, value in settings.items() if name != "steps"},
        "preprocess": config,
        "fitted": digest(fitted.values()),
        "training images": digest([len(train), seen.images, seen.labels, *marks]),
        "starting state": digest(start),
        "sketch": dict(zip(_SKETCHED, ([sketch(seen.images)], [*map(sketch, start)]), strict=True)),
        "functions": {  # an earlier version had no augmentation to record
            name: identity_of(strategy)
            for name in _STRATEGIES
            if (strategy := getattr(recipe, name)) is not None
        },
        "versions": _versions(),
        "machine": _machine(),
    }


def _versions() -> dict[str, str]:
    there = {name: importlib.metadata.version(name) for name in LIBRARIES}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        there[_DECODES] = importlib.metadata.version(_DECODES)
    return there


def _machine() -> dict[str, Any]:
    """What decides in which order a processor sums."""
    may_use = getattr(os, "sched_getaffinity", None)
    cores = len(may_use(0)) if may_use else os.cpu_count()
    threads = {name: os.environ[name] for name in _THREADS if name in os.environ}
    return {"cores": cores, "processor": jax.devices()[0].device_kind, **threads}


Found = tuple[dict[str, Any], dict[str, np.ndarray]]  # the card and the arrays of a checkpoint


def look(folder: CheckpointFolder, *, resume: bool) -> Found | None:
    """The newest valid checkpoint to go on from, if there is one.

    Raises `ValueError` for a folder with checkpoints that are not to be resumed.
    """
    if folder.files() and not resume:
        raise ValueError(
            f"{folder.folder} holds {len(folder.files())} checkpoints of an earlier run: resume "
            "it, or choose another folder."
        )
    return folder.newest()


def begin(
    folder: CheckpointFolder,
    found: Found | None,
    card: Mapping[str, Any],
    state: State,
    images: jax.ShapeDtypeStruct,
) -> tuple[State, dict[str, list[float]]]:
    """The state and history to go on from: those of the checkpoint found, or the start.

    Raises `ValueError` for a checkpoint of another run, and says what differs; `OSError` where
    there is no room.
    """
    folder.check_room(state)
    if found is None:
        return state, {}
    there, arrays = found
    check_same_run(there, card, folder)
    history = {name: array.tolist() for name, array in within("history", arrays).items()}
    batch = images, jax.ShapeDtypeStruct(images.shape[:1], jnp.int32)
    return restore(arrays, tuned_structure(state, batch)), history


def fitted_arrays(preprocess: AbstractPreprocess) -> dict[str, np.ndarray]:
    """What a checkpoint keeps of a preprocessing, by name."""
    return under("preprocess", to_state(preprocess)[1])


def as_fitted(
    found: Found | None, given: AbstractPreprocess | None, images: np.ndarray
) -> AbstractPreprocess | None:
    """The preprocessing a run goes on with: the one it began with, if its checkpoint has it.

    Fitted anew, a whitening differs in its last digits with the threads of a machine. `given` is
    what `distill` was asked for, which must do the same to `images` as the one kept; where it does
    not, as where nothing is kept, it is returned.
    """
    if found is None or "preprocess" not in found[0]:
        return given
    config, arrays = found[0]["preprocess"], within("preprocess", found[1])
    if to_state(given)[0] != config if given else config["kind"] == "own":
        return given
    kept = from_state(config, arrays, given)
    if given is None:
        return kept
    a, b = np.asarray(kept(images)), np.asarray(given(images))
    return kept if np.linalg.norm(a - b) <= _CLOSE * np.linalg.norm(a) else given


def check_same_run(
    there: Mapping[str, Any], here: Mapping[str, Any], folder: CheckpointFolder
) -> None:
    """Raise `ValueError` for another run's checkpoint; warn of other versions, machines or code.

    By other versions, or with other threads, the same run has other last digits: its arrays are
    then compared by their sketches, and what its functions carry is no more than told.
    """
    there = {"devices": 1} | dict(there)
    differ = {k: v for k, v in differences(there, here).items() if k.partition(".")[0] in there}
    settings, machine, versions, functions = (
        within(part, differ) for part in ("settings", "machine", "versions", "functions")
    )
    versions = {k: v for k, v in versions.items() if None not in v}  # of what both had
    devices = "devices" in differ
    elsewhere = bool(versions or machine or devices)
    own = _own_names(there), _own_names(here)
    if "program" in there:
        settings = {k: v for k, v in settings.items() if k.partition(".")[0] not in _REWORDED}
    renamed = {k for k, (a, b) in settings.items() if a in own[0] and b in own[1]}
    wrong = {k: v for k, v in settings.items() if k not in renamed}
    if not wrong:
        sketched = differ.keys() & _SKETCHED
        others = {k for k in sketched if not (elsewhere and _alike(there, here, k))}
        others |= {f"functions.{k}" for k in functions if k.endswith(".values") and not elsewhere}
        fitted = ("preprocess", "fitted")
        wrong = {k: v for k, v in differ.items() if k in others or k.partition(".")[0] in fitted}
    if wrong:
        raise ValueError(
            f"{folder.folder} holds a run that differs from this one: {_lines(wrong)}. Ask for "
            "the same, or choose another folder."
        )
    code = [k for k in functions if k.endswith(".code") or (elsewhere and k.endswith(".values"))]
    changed = sorted({k.partition(".")[0] for k in (*code, *renamed)})
    for said, differs in (
        (f"on {there['devices']} devices and goes on with {here.get('devices', 1)}", devices),
        (f"by other versions ({_lines(versions)})", versions),
        (f"on other cores or threads ({_lines(machine)})", machine),
    ):
        if differs:
            _warn(f"a run {said}: the run goes on, but does not end in the same bytes.")
    if changed:
        _warn(
            f"a run whose {', '.join(changed)} had other source code{' or numbers' * elsewhere}: "
            "the run goes on, and it is for you to know that it computes the same."
        )
    if "program" in there:
        _warn(
            "an earlier version's format, which does not tell losses and optimizers apart: the "
            "run goes on, and it is for you to know that they are the same."
        )


def _own_names(card: Mapping[str, Any]) -> list[str]:
    """The user's functions and classes that a run is made of."""
    return [name for part in card.get("functions", {}).values() for name in part["names"]]


def _alike(there: Mapping[str, Any], here: Mapping[str, Any], part: str) -> bool:
    """Whether two sketches are the same but for rounding; an earlier format has none."""
    if "sketch" not in there:
        return True
    a, b = (np.asarray(card["sketch"][part]) for card in (there, here))
    return a.shape == b.shape and bool((np.abs(a - b) <= _CLOSE * b[:, 2:]).all())


def _lines(differ: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name}: {a!r} there, {b!r} here" for name, (a, b) in differ.items())


def _warn(text: str) -> None:
    warnings.warn(f"The checkpoint is of {text}", RuntimeWarning, stacklevel=6)


def sketch(array: np.ndarray) -> list[float]:
    """Three numbers that rounding moves little and another array moves much; the last is a norm."""
    flat = array.reshape(-1)
    taken = np.nan_to_num(flat[:: flat.size // 4096 | 1].astype(np.float64))
    phase = np.arange(len(taken))
    return [float(x) for x in (taken @ np.cos(phase), taken @ np.sin(phase), np.linalg.norm(taken))]


def digest(parts: Iterable[Any]) -> str:
    """A short hash of arrays' bytes and other values' text, one after another."""
    hashed = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray)
        hashed.update(np.ascontiguousarray(part).data if array else f"{part} ".encode())
    return hashed.hexdigest()[:16]
