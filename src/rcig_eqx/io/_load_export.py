"""An exported folder read again, whoever wrote it."""

import contextlib
import dataclasses
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from .._coreset import Coreset
from ..data import AbstractPreprocess, DataError, from_state, to_state
from ..data._paths import user_path
from ..data._preprocess import check_block
from ..evaluation._report import Evaluation
from ..parameterizations._packed import Expected, Packed, check_array, check_layout
from ._export import ARRAYS, CARD, FORMULAS, MAX_FILE, PACKED, SCHEMA, count_bytes, storage
from ._files import MAX_TEXT, check_header, checksum, file_checksum, under, within
from ._plot import grid_png

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported set.

    - `coreset`: the distilled set, preprocessing attached; `evaluate` and `save_grid` take it.
      Train on its mirror images too if `coreset.flip` is `True`, as `coreset.support()` does.
    - `class_names`: one per class; pass them on, `evaluate(…, class_names=…)`.
    - `evaluation`: the accuracies the card states, or `None`.
    - `card`: everything in `card.json`.
    """

    coreset: Coreset
    class_names: tuple[str, ...]
    evaluation: Evaluation | None
    card: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """How the set was distilled, as [`DistillResult`][rcig_eqx.DistillResult] has it."""
        return self.card["distillation"]

    def __repr__(self) -> str:
        return f"Export({self.coreset}, {self.evaluation!r})"

    def _repr_png_(self) -> bytes | None:
        return grid_png(self.coreset, self.class_names)


def load_export(folder: str | os.PathLike[str]) -> Export:
    """Read a folder written by `export`. Nothing in it is executed.

    Every file is checked before it is used: that it is there, a plain file of this folder, of the
    size and checksum the card says, and then everything in it.

    Raises `FileNotFoundError` if there is no such folder, and `DataError`, which names the file
    and what is wrong with it, for one that is damaged, incomplete, hostile or of another version.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist.")
    with _blaming(folder / CARD):
        card = _read_card(folder / CARD)
    for name, entry in card["files"].items():
        with _blaming(folder / name):
            _check_plain(folder / name, entry["bytes"], entry["bytes"])
            if file_checksum(folder / name) != entry["sha256"]:
                raise ValueError("its contents do not match the checksum in the card")
    with _blaming(folder / ARRAYS):
        coreset = _read_coreset(folder / ARRAYS, card)
    with _blaming(folder / CARD):
        names = tuple(card["dataset"]["class_names"])
        report = card["evaluation"]
        evaluation = None if report is None else Evaluation.from_json(report)
        if evaluation and evaluation.class_names != names:
            raise ValueError("the evaluation is of other classes")
    return Export(coreset, names, evaluation, card)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is a `DataError` about this file."""
    try:
        yield
    except Exception as error:  # hostile files fail in as many ways as they have parts
        told = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
        what = f"{error}" if told else f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is damaged or of no export: {what[:500]}.") from error


def _check_plain(path: Path, at_least: int, at_most: int) -> None:
    """Raise `ValueError` unless this is a file, no link, of a size between the two."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a link or no plain file")
    if not at_least <= status.st_size <= at_most:
        raise ValueError(f"it has {status.st_size} bytes, not {at_least} to {at_most}")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return float(text)


# What a card must hold: a type, a list of one, alternatives, or an object of such. More may be
# there.
_CARD: dict[str, Any] = {
    "dataset": {"name": str, "class_names": [str]},
    "images": {"shape": [int], "per_class": int, "flip": bool},
    "labels": {"shape": [int], "convention": str},
    "preprocess": {"kind": str, "forward": str, "inverse": str},
    "training": {
        "network": {"name": str},
        "loss": str,
        "optimizer": {"name": str},
        "learning_rate": {"peak": float, "warmup_steps": int, "final": float},
        "steps": int,
        "batch_size": int,
    },
    "evaluation": (None, {}),
    "distillation": {},
    "versions": {},
    "bytes": {},
    "pictures": (None, {"all": str, "classes": {}}),
    "files": {ARRAYS: {}},
}
_CONVNET = {"width": int, "depth": int, "padding": [int], "activation": str}


def _conforms(value: Any, form: Any) -> bool:
    if isinstance(form, tuple):
        return any(_conforms(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_conforms(each, form[0]) for each in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            name in value and _conforms(value[name], each) for name, each in form.items()
        )
    return value is form or type(value) is form


def _read_card(path: Path) -> dict[str, Any]:
    """The card, every part the library or the examples rely on being of its type and in range."""
    _check_plain(path, 2, MAX_TEXT)
    card = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    schema = card.get("schema") if isinstance(card, dict) else None
    known = PACKED if isinstance(card, dict) and "storage" in card else SCHEMA
    if schema != known:
        raise ValueError(f"its schema is {schema!r}, where this version reads {known!r}")
    if card.pop("sha256", None) != checksum(card, {}):
        raise ValueError("its contents do not match its checksum")
    wrong = [name for name, form in _CARD.items() if not _conforms(card.get(name, ...), form)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} lacks parts or has some of the wrong type")
    for name, entry in card["files"].items():
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no plain file name of this folder")
        if not _conforms(entry, {"bytes": int, "sha256": str}) or entry["bytes"] > MAX_FILE:
            raise ValueError(f"{name} has no size of up to {MAX_FILE} bytes, or no checksum")
    pictures = card["pictures"] or {"all": ARRAYS, "classes": {}}  # none could be drawn
    if any(name not in card["files"] for name in (pictures["all"], *pictures["classes"].values())):
        raise ValueError("it names pictures that are no files of it")
    names, training = card["dataset"]["class_names"], card["training"]
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError("class_names are no distinct names")
    if card["pictures"] and list(card["pictures"]["classes"]) != names:
        raise ValueError("the pictures are of other classes")
    rate, network = training["learning_rate"], training["network"]
    if training["batch_size"] < 1 or not 0 <= rate["warmup_steps"] < training["steps"]:
        raise ValueError("there are no training steps after the warm-up, or no batch")
    if not 0 <= rate["final"] <= rate["peak"]:
        raise ValueError("the learning rates are no peak and a smaller end")
    if network["name"] == "ConvNet" and (
        not _conforms(network, _CONVNET)
        or not (1 <= network["depth"] == len(network["padding"]) <= 20)
        or not (1 <= network["width"] <= 2**16 and set(network["padding"]) <= {0, 1, 2, 3})
    ):
        raise ValueError("the network has no width, depth and padding that make a ConvNet")
    return card


def _read_coreset(path: Path, card: dict[str, Any]) -> Coreset:
    """The arrays, after their names, types and shapes alone have been checked."""
    check_header(path)
    shape, classes = tuple(card["images"]["shape"]), len(card["dataset"]["class_names"])
    if len(shape) < 2 or min(shape) < 1 or shape[0] != card["images"]["per_class"] * classes:
        raise ValueError(f"the card's images {shape} are no whole number for each class")
    if len(shape) != 4 and (card["images"]["flip"] or card["preprocess"]["kind"].startswith("zca")):
        raise ValueError(f"inputs {shape[1:]} are neither mirrored nor whitened")
    if card["labels"]["shape"] != [shape[0], classes]:
        raise ValueError("the card does not have one label per image and class")
    d, channels = math.prod(shape[1:]), shape[-1:]
    if card["preprocess"]["kind"] == "zca_blocks":
        check_block(shape[1:], card["preprocess"]["block"])
        d = card["preprocess"]["block"] ** 2 * shape[3]
    fitted = {"mean": channels, "std": channels, "center": (d,), "eigenvalues": (d,)}
    shapes = under("preprocess", fitted | {"eigenvectors": (d, d)})
    wanted = {"images": shape, "labels": (shape[0], classes)}
    packed = {}
    if "storage" in card:
        packed, made = check_layout(card["storage"])
        if made != wanted:
            raise ValueError(f"the storage makes {made}, where the card has {wanted}")
    shapes |= {} if packed else wanted
    arrays = _read_arrays(path, shapes, packed)
    if packed:
        layout = {name: card["storage"][name] for name in wanted}
        stored = Packed({name: arrays[name] for name in packed}, layout)
        decoded = dict(zip(wanted, stored.decode(), strict=True))
        if card["storage"] != storage(stored, classes):
            raise ValueError("the storage says something else of itself")
    else:
        decoded = {name: arrays[name] for name in wanted}
    for name, array in decoded.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    preprocess = _read_preprocess(card["preprocess"], arrays)
    gray = jnp.full((1, *shape[1:]), 0.5, jnp.float32)
    if not jnp.isfinite(jnp.stack([preprocess(gray), preprocess.inverse(gray)])).all():
        raise ValueError("the preprocessing of a gray image, or its inverse, is not finite")
    if card["bytes"] != count_bytes(arrays, shape[1:]):
        raise ValueError("the card counts other bytes")
    images, labels = (jnp.asarray(decoded[name]) for name in ("images", "labels"))
    zero = jnp.zeros((), jnp.float32)
    return Coreset(images, labels, zero, preprocess, flip=card["images"]["flip"])


_KINDS = {"F32": "float32", "U8": "uint8"}


def _read_arrays(
    path: Path, shapes: dict[str, tuple[int, ...]], packed: Expected
) -> dict[str, np.ndarray]:
    """The arrays of a file, none of which is read before all are of their types and shapes."""
    with safetensors.safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            entry = file.get_slice(name)
            shape, kind = tuple(entry.get_shape()), str(entry.get_dtype())
            if name in packed:
                check_array(name, _KINDS.get(kind, kind), shape, packed)
                continue
            if name not in shapes or shape != shapes[name]:
                raise ValueError(f"{name[:100]} has shape {list(shape)}, or is not expected")
            if kind != "F32":
                raise ValueError(f"{name} is {kind}, not float32")
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, array in arrays.items():
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    return arrays


def _read_preprocess(described: dict[str, Any], arrays: dict[str, Any]) -> AbstractPreprocess:
    """What `to_state` stored, which must be all that is there."""
    state = within("preprocess", arrays)
    preprocess = from_state(described, state)
    config, expected = to_state(preprocess)
    if state.keys() != expected.keys():
        raise ValueError("there are arrays its preprocessing does not use")
    for name, value in (config | FORMULAS[config["kind"]]).items():
        if described[name] != value:
            raise ValueError(f"the card's preprocessing says another {name}")
    return preprocess
