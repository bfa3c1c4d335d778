"""A distilled set as a folder that can be used without this library."""

import contextlib
import inspect
import json
import math
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as serialize

from .._coreset import check_coreset
from .._describe import versions
from ..data import to_state
from ..data._paths import user_path
from ..evaluation._evaluate import fresh_network
from ..evaluation._report import Evaluation
from ..evaluation._train_network import training_recipe, usual_training
from ..parameterizations import _read
from ..parameterizations._packed import HOW, Packed
from ._files import (
    MAX_FILE,
    MAX_TEXT,
    check_length,
    checksum,
    file_checksum,
    under,
    write_atomically,
)
from ._plot import drawing, has_pictures, save_class, save_grid, to_pixels
from ._readme import ARRAYS, GRID, readme
from ._result import DistillResult

SCHEMA, PACKED = "rcig_eqx.export/1", "rcig_eqx.export/2"
CARD, README, READER, DATASET = "card.json", "README.md", "read.py", "dataset.py"

FORMULAS = {
    "identity": {"forward": "x = pixels", "inverse": "pixels = x"},
    "standardize": {
        "forward": "x = (pixels - mean) / std, channel by channel",
        "inverse": "pixels = x * std + mean",
    },
    "zca": {
        "forward": "z = (pixels - mean) / std, flattened in the order h, w, c; with U = "
        "eigenvectors (columns) and e = eigenvalues (regularization included), "
        "x = (z - center) @ U @ diag(e^-0.5) @ U.T",
        "inverse": "z = x @ U @ diag(e^0.5) @ U.T + center; pixels = z * std + mean",
    },
    "zca_blocks": {
        "forward": "(pixels - mean) / std, cut into tiles of block x block pixels (row by row, "
        "from the top left), every tile flattened in the order h, w, c to z; with U = eigenvectors "
        "(columns) and e = eigenvalues (regularization included), "
        "x = (z - center) @ U @ diag(e^-0.5) @ U.T, tile by tile, put back in its place",
        "inverse": "tile by tile, z = x @ U @ diag(e^0.5) @ U.T + center, put back in its place; "
        "pixels = z * std + mean",
    },
}


def export(
    result: DistillResult,
    folder: str | os.PathLike[str],
    *,
    evaluation: Evaluation | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a distilled set as a folder that trains networks without this library.

    The folder holds `arrays.safetensors` (images, labels, and the arrays of the preprocessing),
    `card.json` (all there is to know to train on them, the accuracies measured, and a checksum of
    every file), `README.md` (the same for people), and pictures: `grid.png` and one of each class.
    `read.py` reads it, a packed set too, by NumPy alone; `dataset.py` is a dataset of PyTorch.
    It appears under its name only once it is complete. Pictures need matplotlib, the extra `plot`;
    where they cannot be drawn a warning says so, and the folder has none.

    **Arguments:**

    - `result`: what `distill` or `load_result` returned.
    - `folder`: where to; it must not exist, or be empty.
    - `evaluation`: what `evaluate` measured on this result. Its networks' training becomes the
      recipe of the card; without one the recipe is the paper's, and no accuracy is stated.
    - `overwrite`: whether to replace an earlier export. Nothing else is ever replaced.

    **Returns:** the folder. Raises `ValueError` for an evaluation of other classes or a set that
    `load_export` would refuse, `FileExistsError` if something stands there, `OSError` if it cannot
    be written, and leaves what stood there before.
    """
    if not isinstance(result, DistillResult):
        raise ValueError(
            f"result is a {type(result).__name__}, which has no class names and no recipe: pass "
            "what distill or load_result returned."
        )
    check_coreset(result.coreset, "result.coreset")
    folder = user_path(folder).resolve()
    if evaluation and (evaluation.class_names != result.class_names or not evaluation.training):
        raise ValueError(
            "evaluation is not of this result: pass what evaluate(result, …) returned."
        )
    if evaluation and not evaluation.training.keys().isdisjoint(("augmentation", "labels")):
        raise ValueError(
            "evaluation changed the images or labels that are exported, and whoever reads the card "
            "would not: measure one without augment= and with labels='learned'."
        )
    check_place(folder, overwrite)
    check_described(result)
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", dir=folder.parent))
        new = staging / "new"
        new.mkdir()
        _write(result, new, evaluation)
        _put(new, folder, staging / "old", overwrite)
    except OSError as error:
        if error.errno is None:  # it says all there is to say
            raise
        told = OSError(
            error.errno,
            f"could not export to {folder}: {os.strerror(error.errno)}. What stood there before, "
            "if anything, is untouched; free some space or choose another place",
        )
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error
    finally:
        if staging:
            shutil.rmtree(staging / "new", ignore_errors=True)
            with contextlib.suppress(OSError):  # if there is an old folder that could not go back
                staging.rmdir()
    return folder


def _put(new: Path, folder: Path, old: Path, overwrite: bool) -> None:
    """Put a whole export in place of what is there, of which nothing else is ever removed.

    It is looked at again once it is out of everyone's way: who wrote there meanwhile gets it back.
    """
    if folder.exists():
        folder.rename(old)
    try:
        check_place(old, overwrite, called=folder)
        new.rename(folder)
    except BaseException as error:
        if old.exists():
            try:
                old.rename(folder)
            except OSError:
                error.add_note(f"What stood there before is in {old}.")
        raise
    if old.exists():
        ours = {CARD, *(_card_of(old) or {}).get("files", ())}
        for path in old.iterdir():
            if path.name in ours:
                path.unlink()
        try:
            old.rmdir()
        except OSError:
            warnings.warn(f"{old} has files that are of no export.", RuntimeWarning, stacklevel=3)


def check_place(
    folder: Path, overwrite: bool, called: Path | None = None, fix: str = "pass overwrite=True"
) -> None:
    """Raise `FileExistsError` unless an export may be written there, or to what it is called."""
    called = called or folder
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    card = _card_of(folder)
    if card is None:
        raise FileExistsError(f"{called} is there and no export: choose another place.")
    others = sorted({path.name for path in folder.iterdir()} - {CARD, *card.get("files", ())})
    if others:
        what = f"{others[0]}, which is no part of an export"
        raise FileExistsError(f"{called} holds {what}: move it or choose another place.")
    if not overwrite:
        raise FileExistsError(f"{called} is there already: {fix} to replace it.")


def _card_of(folder: Path) -> dict[str, Any] | None:
    """The card of an export, `None` if there is none in the folder."""
    try:
        card = json.loads((folder / CARD).read_bytes())
    except (OSError, ValueError):
        return None
    ours = isinstance(card, dict) and str(card.get("schema")).startswith("rcig_eqx.export/")
    return card if ours else None


def check_described(result: DistillResult) -> None:
    """Raise `ValueError` for a preprocessing that cannot be done without its class."""
    preprocess = result.coreset.preprocess
    assert preprocess is not None, "a result's coreset carries its preprocessing"
    if to_state(preprocess)[0]["kind"] not in FORMULAS:
        raise ValueError(
            f"preprocessing of class {type(preprocess).__name__} cannot be described to others: "
            "keep such a set with result.save, or distill with one of rcig_eqx.data."
        )


def _write(result: DistillResult, folder: Path, evaluation: Evaluation | None) -> None:
    coreset = result.coreset
    assert coreset.preprocess is not None, "a result's coreset carries its preprocessing"
    config, preprocess = to_state(coreset.preprocess)
    card, packed = _card(result, config, evaluation), result.stored
    arrays = {"images": coreset.images, "labels": coreset.labels}
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    if packed:
        arrays = packed.set_arrays
        card |= {"schema": PACKED, "storage": storage(packed, coreset.num_classes)}
    write_atomically(folder / READER, inspect.getsource(_read).encode())
    # not imported here, where its neighbors and PyTorch are missing
    shutil.copyfile(Path(__file__).with_name("_dataset.py"), folder / DATASET)
    preprocess = {name: np.asarray(value, np.float32) for name, value in preprocess.items()}
    arrays |= under("preprocess", preprocess)
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    card["bytes"] = count_bytes(arrays, coreset.images.shape[1:])
    _check_readable(card, arrays)
    title = f"{card['dataset']['name']}, {card['images']['per_class']} per class"

    write_atomically(folder / ARRAYS, serialize(arrays))
    card["pictures"] = None
    if has_pictures(coreset):
        with drawing(but=OSError):
            card["pictures"] = _pictures(result, folder, title)
    if card["pictures"] is None:
        for half_done in folder.glob("*.png"):
            half_done.unlink()
    write_atomically(folder / README, readme(title, card).encode())
    card["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
        for path in sorted(folder.iterdir())
    }
    card["sha256"] = checksum(card, {})
    content = json.dumps(card, indent=2, allow_nan=False).encode()
    check_length(card, len(content), folder / CARD)
    write_atomically(folder / CARD, content)


def _pictures(result: DistillResult, folder: Path, title: str) -> dict[str, Any]:
    """Draw all images, and those of each class, and say in which files."""
    save_grid(result.coreset, result.class_names, folder / GRID, title=title)
    pictures = {name: f"class-{i:03d}.png" for i, name in enumerate(result.class_names)}
    pixels = np.split(to_pixels(result.coreset), len(pictures))
    for name, images in zip(pictures.values(), pixels, strict=True):
        save_class(images, folder / name)
    return {"all": GRID, "classes": pictures}


def _check_readable(card: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Raise `ValueError` for what `load_export` would refuse."""
    names = card["dataset"]["class_names"]
    if "" in names or len(set(names)) < len(names):
        raise ValueError("class_names are not distinct, or one is empty: rename some.")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of the result holds NaN or infinite numbers: distill anew.")
    if card["bytes"]["total"] > MAX_FILE - MAX_TEXT:
        raise ValueError(
            f"The arrays take {card['bytes']['total']:,} bytes, and a file of an export at most "
            f"{MAX_FILE:,}: keep such a set with result.save."
        )


def _card(
    result: DistillResult, preprocess: dict[str, Any], evaluation: Evaluation | None
) -> dict[str, Any]:
    """Everything but the sizes and sums of the files, in plain values."""
    coreset, recipe = result.coreset, _plain(result.recipe)
    recipe["dataset"] = Path(str(recipe.get("dataset", "custom"))).name  # not where it was kept
    if evaluation:
        training = evaluation.training
    else:
        usual = usual_training(len(coreset.images))
        training = training_recipe(fresh_network(result), **usual._asdict())
    layout, pixels = "n, then the shape of one input", "values as they are"
    if has_pictures(coreset):
        layout, pixels = "n h w c", "in [0, 1]: uint8 values / 255, n h w c"
    return {
        "schema": SCHEMA,
        "dataset": {"name": recipe["dataset"], "class_names": list(result.class_names)},
        "images": {
            "shape": list(coreset.images.shape),
            "layout": f"{layout}, float32, preprocessed; class after class, per_class of each",
            "per_class": len(coreset.images) // coreset.num_classes,
            "flip": coreset.flip,
            "flip_means": "whether to train on the mirror images (left to right) as well, with the "
            "same labels",
        },
        "labels": {
            "shape": list(coreset.labels.shape),
            "convention": "learned regression targets of the network's outputs, one row an image "
            "and one column a class, float32. No probabilities: they may be negative and do not "
            "sum to one, and no softmax is taken but by a loss of training that says so. A test "
            "image's class is its largest output.",
        },
        "preprocess": {
            "pixels": pixels,
            **preprocess,
            **FORMULAS[preprocess["kind"]],
            "arrays": "those of arrays.safetensors whose names begin with preprocess.",
        },
        "training": _plain(training),
        "evaluation": _plain(evaluation.to_json()) if evaluation else None,
        "distillation": recipe,
        "versions": versions(),
    }


def storage(packed: Packed, classes: int) -> dict[str, Any]:
    """How a set is decoded, and the bits that it takes."""
    bits = {"bits": packed.bits, "bits_per_class": -(-packed.bits // classes)}
    return {"how": HOW, "decoded_by": READER} | bits | packed.layout


def count_bytes(
    arrays: dict[str, np.ndarray], shape: tuple[int, ...] | None = None
) -> dict[str, int]:
    """What a set takes, and how many real images of uint8 take as much, or inputs of float32, with
    a byte of label; `shape` is that of one where images are packed."""
    shape = arrays["images"].shape[1:] if shape is None else shape
    parts = ("images", "labels", "preprocess")
    sizes = {
        part: sum(a.nbytes for name, a in arrays.items() if name.partition(".")[0] == part)
        for part in parts
    }
    total = sum(sizes.values())
    # a real image is stored as bytes, another input as float32
    real = math.prod(shape) * (1 if len(shape) == 3 else 4) + 1
    return sizes | {"total": total, "real_images_of_as_many_bytes": total // real}


def _plain(value: Any) -> Any:
    """Values as JSON keeps them; infinities and NaN, which it has not, as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
