"""A distilled set as a folder that can be used without this library."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as serialize

from .._describe import versions
from ..data import to_state
from ..evaluation._evaluate import default_steps, fresh_network, training_recipe
from ..evaluation._report import Evaluation
from ._files import checksum, file_checksum, write_atomically
from ._plot import save_class, save_grid, to_pixels
from ._result import DistillResult

SCHEMA = "rcig_eqx.export/1"
CARD, ARRAYS, README, GRID = "card.json", "arrays.safetensors", "README.md", "grid.png"

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
    It appears under its name only once it is complete. Needs matplotlib, the extra `plot`.

    **Arguments:**

    - `result`: what `distill` or `load_result` returned.
    - `folder`: where to; it must not exist, or be empty.
    - `evaluation`: what `evaluate` measured on this result. Its networks' training becomes the
      recipe of the card; without one the recipe is the paper's, and no accuracy is stated.
    - `overwrite`: whether to replace an earlier export. Nothing else is ever replaced.

    **Returns:** the folder. Raises `ValueError` for an evaluation of other classes,
    `FileExistsError` if something stands there, `OSError` if it cannot be written, and leaves what
    stood there before.
    """
    folder = Path(folder).expanduser().resolve()
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
    staging = old = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new, old = staging / "new", staging / "old"
        new.mkdir()
        _write(result, new, evaluation)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException as error:
        if old and old.exists():
            old.rename(folder)
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else error
            raise OSError(
                error.errno,
                f"could not export to {folder}: {reason}. What stood there before, if anything, is "
                "untouched; free some space or choose another place",
            ) from error
        raise
    finally:
        if staging:
            shutil.rmtree(staging, ignore_errors=True)
    return folder


def check_place(folder: Path, overwrite: bool) -> None:
    """Raise `FileExistsError` unless an export may be written there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    card = _card_of(folder)
    if card is None:
        raise FileExistsError(f"{folder} is there and no export: choose another place.")
    others = sorted({path.name for path in folder.iterdir()} - {CARD, *card.get("files", ())})
    if others:
        raise FileExistsError(
            f"{folder} holds {others[0]}, which is no part of an export: move it or choose another "
            "place."
        )
    if not overwrite:
        raise FileExistsError(f"{folder} is there already: pass overwrite=True to replace it.")


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
            "keep such a set with result.save, or distil with one of rcig_eqx.data."
        )


def _write(result: DistillResult, folder: Path, evaluation: Evaluation | None) -> None:
    coreset = result.coreset
    assert coreset.preprocess is not None, "a result's coreset carries its preprocessing"
    config, preprocess = to_state(coreset.preprocess)
    arrays = {"images": coreset.images, "labels": coreset.labels}
    arrays |= {f"preprocess.{name}": value for name, value in preprocess.items()}
    arrays = {name: np.asarray(value, np.float32, order="C") for name, value in arrays.items()}
    card = _card(result, config, evaluation) | {"bytes": count_bytes(arrays)}
    title = f"{card['dataset']['name']}, {card['images']['per_class']} a class"

    write_atomically(folder / ARRAYS, serialize(arrays))
    save_grid(coreset, result.class_names, folder / GRID, title=title)
    pictures = {name: f"class-{i:03d}.png" for i, name in enumerate(result.class_names)}
    pixels = np.split(to_pixels(coreset), len(pictures))
    for name, images in zip(pictures.values(), pixels, strict=True):
        save_class(images, folder / name)
    write_atomically(folder / README, _readme(title, card, pictures).encode())

    card["pictures"] = {"all": GRID, "classes": pictures}
    card["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
        for path in sorted(folder.iterdir())
    }
    card["sha256"] = checksum(card, {})
    write_atomically(folder / CARD, json.dumps(card, indent=2, allow_nan=False).encode())


def _card(
    result: DistillResult, preprocess: dict[str, Any], evaluation: Evaluation | None
) -> dict[str, Any]:
    """Everything but the sizes and sums of the files, in plain values."""
    coreset, recipe = result.coreset, _plain(result.recipe)
    recipe["dataset"] = Path(str(recipe.get("dataset", "custom"))).name  # not where it was kept
    if evaluation:
        training = evaluation.training
    else:
        steps = default_steps(len(coreset.images))
        training = training_recipe(fresh_network(result), steps=steps)
    return {
        "schema": SCHEMA,
        "dataset": {"name": recipe["dataset"], "class_names": list(result.class_names)},
        "images": {
            "shape": list(coreset.images.shape),
            "layout": "n h w c, float32, preprocessed; class after class, per_class of each",
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
            "pixels": "in [0, 1]: uint8 values / 255, n h w c",
            **preprocess,
            **FORMULAS[preprocess["kind"]],
            "arrays": "those of arrays.safetensors whose names begin with preprocess.",
        },
        "training": _plain(training),
        "evaluation": _plain(evaluation.to_json()) if evaluation else None,
        "distillation": recipe,
        "versions": versions(),
    }


def count_bytes(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """What a set takes, and how many real images of uint8, with a byte of label, take as much."""
    sizes = {"images": arrays["images"].nbytes, "labels": arrays["labels"].nbytes}
    sizes["preprocess"] = sum(a.nbytes for k, a in arrays.items() if k.startswith("preprocess."))
    total = sum(sizes.values())
    real = math.prod(arrays["images"].shape[1:]) + 1
    return sizes | {"total": total, "real_images_of_as_many_bytes": total // real}


def _plain(value: Any) -> Any:
    """Values as JSON keeps them; infinities and NaN, which it has not, as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _readme(title: str, card: dict[str, Any], pictures: dict[str, str]) -> str:
    images, training, size = card["images"], card["training"], card["bytes"]
    network, rate = training["network"], training["learning_rate"]
    flip = " and their mirror images" if images["flip"] else ""
    known = (f"{name} {network[name]}" for name in ("width", "depth") if name in network)
    network_parts = [network["name"], *known, network.get("activation", "as its authors say")]
    n, h, w, c = images["shape"]
    gallery = "\n".join(f"| {name} | ![{name}]({file}) |" for name, file in pictures.items())
    return f"""# Distilled {title}

{n} synthetic images of {h}×{w}×{c}, {images["per_class"]} of each of
{len(pictures)} classes, to train fresh networks on.

![The distilled images]({GRID})

## What it is worth

{_accuracies(card["evaluation"])}

| part | bytes |
|---|---|
| images | {size["images"]:,} |
| labels | {size["labels"]:,} |
| preprocessing | {size["preprocess"]:,} |
| all | {size["total"]:,} |

That is as much as {size["real_images_of_as_many_bytes"]:,} real images take as uint8, with a
byte of label each.

## How to train on it

`card.json` has all of this in exact terms, and the SHA-256 of every file; `{ARRAYS}` has
`images` [n h w c], `labels` [n classes] and the arrays of the preprocessing.

- **Images** are preprocessed already. Test images must be, the same way, with pixels in [0, 1]:
  {card["preprocess"]["forward"]}. The way back: {card["preprocess"]["inverse"]}.
- **Labels** are regression targets, not probabilities: no softmax, no one-hot.
- **Loss**: {training["loss"]}, on the images{flip}.
- **Network**: {", ".join(network_parts)}.
- **Optimiser**: Adam at a peak rate of {rate["peak"]:g}, {rate["warmup_steps"]} steps of linear
  warm-up, cosine decay to {rate["final"]:g}; {training["steps"]} steps in all, of up to
  {training["batch_size"]} images.

```python
import json
from safetensors.numpy import load_file

card, arrays = json.load(open("card.json")), load_file("{ARRAYS}")
images, labels = arrays["images"], arrays["labels"]
```

## Images

An image that leaves [0, 1] is scaled into it above, and clipped in the pictures of classes; the
arrays are as they are.

| class | images |
|---|---|
{gallery}
"""


def _accuracies(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured."
    tested, base = evaluation["tested_on"], evaluation["baseline"]
    lines = ["| trained on | test accuracy | each network |", "|---|---|---|"]
    for name, part in (("this set", evaluation), ("as many random real images", base)):
        if part:
            each = ", ".join(f"{x:.2%}" for x in part["accuracies"])
            lines.append(f"| {name} | {part['mean']:.2%} ± {part['std']:.2%} | {each} |")
    on = f"{tested['images']:,} test images of {tested['dataset']}" if tested else "test images"
    lines.append(f"\nMean and standard deviation over fresh networks, on {on}.")
    return "\n".join(lines)
