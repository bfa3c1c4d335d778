"""Whether a checkpoint is of this very run, and how the run goes on from it."""

import hashlib
import importlib.metadata
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from .._algorithm import State
from ..data import AbstractImages, Dataset
from ._checkpoint import CheckpointFolder, arrays_of, differences, numbers_of, restore
from ._guard import step
from ._step import tuned_structure

_COMPUTES = ("rcig-eqx", "jax", "jaxlib", "equinox", "optax", "lineax", "grain", "numpy")


def run_card(
    settings: Mapping[str, Any],
    train: Any,
    seen: Dataset,
    state: State,
    images: jax.ShapeDtypeStruct,
) -> dict[str, Any]:
    """What makes a run the run it is, in plain values.

    **Arguments:**

    - `settings`: what `distill` was asked for. The number of steps may change between two parts
      of a run, all else may not.
    - `train`: the training set, and `seen` the part of it that is in memory.
    - `state`: the state before the first step.
    - `images`: shape and dtype of an outer batch's.

    Functions of a user's, such as losses and optimisers, have no names to compare. What they
    compute has: the hash of the traced step. The hash of the starting state covers the key and
    every number passed.
    """
    traced = eqx.filter_make_jaxpr(step)(tuned_structure(state, _batch(images)), _batch(images))[0]
    marks = train.marks if isinstance(train, AbstractImages) else ()
    return {
        "settings": {name: value for name, value in settings.items() if name != "steps"},
        "training images": digest([len(train), seen.images, seen.labels, *marks]),
        "starting state": digest(arrays_of(state).values()),
        "program": digest([_plain(traced), *map(np.asarray, map(numbers_of, _constants(traced)))]),
        "versions": {name: importlib.metadata.version(name) for name in _COMPUTES},
    }


Found = tuple[dict[str, Any], dict[str, np.ndarray]]  # the card and the arrays of a checkpoint


def look(folder: CheckpointFolder, *, resume: bool) -> Found | None:
    """The newest valid checkpoint to go on from, if there is one.

    Raises `ValueError` for a folder with checkpoints that are not to be resumed, `OSError` for one
    that cannot be written.
    """
    folder.prepare()
    if folder.files() and not resume:
        raise ValueError(
            f"{folder.folder} holds {len(folder.files())} checkpoints of an earlier run: pass "
            "resume=True to go on with it, or choose another checkpoint_dir."
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
    prefix = "history."
    history = {
        name.removeprefix(prefix): array.tolist()
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return restore(arrays, tuned_structure(state, _batch(images))), history


def _batch(images: jax.ShapeDtypeStruct) -> Any:
    return images, jax.ShapeDtypeStruct(images.shape[:1], jnp.int32)


def check_same_run(
    there: Mapping[str, Any], here: Mapping[str, Any], folder: CheckpointFolder
) -> None:
    """Raise `ValueError` for another run's checkpoint; warn of other versions or devices."""
    there, here = ({k: v for k, v in card.items() if k != "steps"} for card in (there, here))
    wrote, runs = there.pop("devices", 1), here.pop("devices", 1)
    if wrote != runs:
        warnings.warn(
            f"The checkpoint is of a run on {wrote} devices and goes on with {runs}: sums run in "
            "another order, and it does not end in the same bytes.",
            RuntimeWarning,
            stacklevel=4,
        )
    versions = differences(there.pop("versions"), here.pop("versions"))
    if versions:
        # The text of a program is its compiler's; another one writes it differently.
        del there["program"], here["program"]
        warnings.warn(
            f"The checkpoint is by other versions ({'; '.join(versions)}): the run goes on, but "
            "does not end in the same bytes.",
            RuntimeWarning,
            stacklevel=4,
        )
    settings = differences(there["settings"], here["settings"])
    differ = settings or differences(there, here)
    if differ:
        hashes = (
            " (`program` is a hash of what a step computes: losses, optimiser and learning rates, "
            "average, network; `starting state` one of the key and the first state's numbers.)"
        )
        raise ValueError(
            f"{folder.folder} holds a run that differs from this one: {'; '.join(differ)}. Ask "
            f"for the same, or choose another checkpoint_dir.{'' if settings else hashes}"
        )


def _constants(program: Any) -> Iterator[Any]:
    """The arrays that a traced program has closed over, which its text does not show."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    for equation in getattr(program, "eqns", ()):
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _constants(value)


def _plain(program: Any) -> str:
    """A program's text, without the colours that JAX gives it in a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(program))


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def digest(parts: Iterable[Any]) -> str:
    """A short hash of arrays' bytes and other values' text, one after another."""
    hashed = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray)
        hashed.update(np.ascontiguousarray(part).data if array else f"{part} ".encode())
    return hashed.hexdigest()[:16]
