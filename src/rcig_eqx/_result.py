"""What a run returns, and the file it is kept in."""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import PyTree
from safetensors.numpy import save as serialize

from ._coreset import Coreset
from .data import AbstractPreprocess, DataError, from_state, to_state

FORMAT = "rcig_eqx/1"


@dataclasses.dataclass(frozen=True)
class DistillResult:
    """A distilled set that describes itself.

    - `coreset`: the averaged ψ, preprocessing attached: the result.
    - `last`: the last iterate instead of the average.
    - `baseline`: as many random real images, with plain labels, to compare with.
    - `class_names`: one a class.
    - `recipe`: plain values that say how it was made: data set, method, steps, versions, …
    - `history`: arrays `[steps]` by name: `loss`, `accuracy`, `seconds`, ….
    - `psi`: the averaged ψ of a parameterisation, which `coreset` is decoded from, before its
      labels took the temperature; `None` without one. It is not in the file:
      `equinox.tree_serialise_leaves` keeps any pytree.
    """

    coreset: Coreset
    last: Coreset
    baseline: Coreset
    class_names: tuple[str, ...]
    recipe: dict[str, Any]
    history: dict[str, np.ndarray]
    psi: PyTree = None

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its last step."""
        return self.recipe["steps_done"] < self.recipe["steps"]

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file: arrays, and the rest as JSON in its header.

        The file appears under its name only once it is complete. Raises `OSError` if it cannot
        be written, and leaves what stood there before.
        """
        path = Path(path)
        preprocess = self.coreset.preprocess
        assert preprocess is not None, "a result's coreset carries its preprocessing"
        preprocess_config, preprocess_arrays = to_state(preprocess)
        arrays = {f"preprocess.{name}": value for name, value in preprocess_arrays.items()}
        for name in _CORESETS:
            coreset = getattr(self, name)
            arrays |= {f"{name}.{field}": getattr(coreset, field) for field in _FIELDS}
        arrays |= {f"history.{name}": value for name, value in self.history.items()}
        card = {
            "format": FORMAT,
            "class_names": self.class_names,
            "labels": "one row an image, learned from one-hot - 1/classes; not probabilities",
            "images": "n h w c, preprocessed",
            "flip": self.coreset.flip,
            "preprocess": preprocess_config,
            "recipe": self.recipe,
        }
        arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
        card["sha256"] = checksum(card, arrays)
        write_atomically(path, serialize(arrays, {"rcig_eqx": json.dumps(card)}))
        return path


_CORESETS = ("coreset", "last", "baseline")
_FIELDS = ("images", "labels", "log_temperature")


def load_result(
    path: str | os.PathLike, *, preprocess: AbstractPreprocess | None = None
) -> DistillResult:
    """Read a file written by `DistillResult.save`. Nothing in it is executed.

    A set with a preprocessing of your own class needs an instance of it as `preprocess`, whose
    arrays are then read from the file; others need none.

    Raises `FileNotFoundError`, or `DataError` for a file that is damaged, truncated, or no
    distilled set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            card = json.loads((file.metadata() or {})["rcig_eqx"])
            if card["format"] != FORMAT:
                raise ValueError(f"format {card['format']!r}, where this version reads {FORMAT!r}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if card.pop("sha256") != checksum(card, arrays):
            raise ValueError("its contents do not match its checksum")
        return _assemble(card, arrays, preprocess)
    except (OSError, DataError):
        raise
    except Exception as error:  # hostile files fail in as many ways as they have parts
        what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is damaged or no distilled set: {what}.") from error


def checksum(card: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of everything a file says."""
    digest = hashlib.sha256(json.dumps(card).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or none: to a neighbour first, then renamed over `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        size = len(content) / 1e6
        raise OSError(
            error.errno,
            f"could not write {path} ({size:.1f} MB): {error.strerror}. What stood there before, "
            "if anything, is untouched; free some space or choose another place",
        ) from error


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def _assemble(
    card: dict[str, Any], arrays: dict[str, np.ndarray], own: AbstractPreprocess | None
) -> DistillResult:
    """Make a result of a file's parts, or raise `ValueError`, `KeyError` or `TypeError`."""
    names, recipe, flip = card["class_names"], card["recipe"], card["flip"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise ValueError("class_names are no list of names")
    if type(flip) is not bool:
        raise ValueError(f"flip is {flip!r}, not true or false")
    if type(recipe["steps"]) is not int or type(recipe["steps_done"]) is not int:
        raise ValueError("the recipe's steps are no integers")
    history = _named(arrays, "history")
    if any(series.ndim != 1 for series in history.values()):
        raise ValueError("the history is not one number a step")
    for name in arrays.keys() - {f"history.{series}" for series in history}:
        if arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds NaN, infinite or no float32 values")
    preprocess = from_state(card["preprocess"], _named(arrays, "preprocess"), own)
    coresets = {}
    for name in _CORESETS:
        images, labels, log_temperature = (arrays[f"{name}.{field}"] for field in _FIELDS)
        if (
            images.ndim != 4
            or 0 in images.shape
            or labels.shape != (len(images), len(names))
            or log_temperature.shape != ()
        ):
            raise ValueError(
                f"{name} has images {images.shape}, labels {labels.shape} and log_temperature "
                f"{log_temperature.shape}, which make no set of {len(names)} classes"
            )
        if jax.eval_shape(preprocess.inverse, images).shape != images.shape:
            raise ValueError("the preprocessing is for other images")
        coresets[name] = Coreset(
            jnp.asarray(images),
            jnp.asarray(labels),
            jnp.asarray(log_temperature),
            preprocess,
            flip=flip,
        )
    return DistillResult(**coresets, class_names=tuple(names), recipe=recipe, history=history)
