"""What a run returns, and the file it is kept in."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._checks import check_flags
from .._coreset import Coreset
from .._types import PyTree
from ..data import AbstractPreprocess, from_state, to_state
from ..data._dataset import noun
from ..data._paths import user_path
from ..parameterizations._packed import Packed, check_arrays, check_layout
from ._figures import CURVES, history_figure
from ._files import damage_named, read_checked, under, within, write_checked
from ._plot import grid_png, plot_grid

FORMAT, PACKED = "rcig_eqx/1", "rcig_eqx/2"
RESULT = "distilled.safetensors"  # in the folder of a run


@dataclasses.dataclass(frozen=True)
class DistillResult:
    """A distilled set that describes itself.

    - `coreset`: the averaged ψ, preprocessing attached: the result.
    - `last`: the last iterate instead of the average.
    - `baseline`: as many random real images, with plain labels, to compare with.
    - `class_names`: one per class.
    - `recipe`: plain values that say how it was made: data set, method, steps, versions, …
    - `history`: arrays `[steps]` by name: `loss`, `accuracy`, `seconds` since the first step
      began, ….
    - `psi`: the averaged ψ of a parameterization, which `coreset` is decoded from, before its
      labels took the temperature; `None` without one. It is not in the file:
      `equinox.tree_serialise_leaves` keeps any pytree.
    - `draws`: `[draws n *shape]`, the images of further random draws such as `baseline`, which show
      how much one draw differs from another; `None` in a file of an earlier version.
    - `packed`: the arrays that `coreset` is decoded from, bit for bit, and how; `None` where it is
      stored as floats. A result of another `coreset` is stored as floats too.
    """

    coreset: Coreset
    last: Coreset
    baseline: Coreset
    class_names: tuple[str, ...]
    recipe: dict[str, Any]
    history: dict[str, np.ndarray]
    psi: PyTree = None
    draws: Float[np.ndarray, "draws n *shape"] | None = None
    packed: Packed | None = None

    @property
    def stored(self) -> Packed | None:
        """`packed`, if it still stands for `coreset`."""
        return self.packed if self.packed and self.packed.is_of(self.coreset) else None

    @property
    def baselines(self) -> tuple[Coreset, ...]:
        """All random draws of real images: `baseline`, and as many sets as `draws` has; none of a
        file that left them out."""
        if not len(self.baseline.images):
            return ()
        draws = () if self.draws is None else map(jnp.asarray, self.draws)
        others = (eqx.tree_at(lambda c: c.images, self.baseline, images) for images in draws)
        return (self.baseline, *others)

    def __repr__(self) -> str:
        images, recipe = self.coreset.images, self.recipe
        bits = (
            f"{recipe['bits_per_class']:,} bits per class, " if "bits_per_class" in recipe else ""
        )
        return (
            f"DistillResult({len(images)} {noun(images.shape[1:])} {tuple(images.shape[1:])} of "
            f"{len(self.class_names)} classes, {bits}{recipe['steps_done']} of {recipe['steps']} "
            f"steps on {recipe.get('dataset')})"
        )

    def _repr_png_(self) -> bytes | None:
        return grid_png(self.coreset, self.class_names)

    def plot(self, *, title: str = "", clip: bool = False) -> Any:
        """A matplotlib figure of the distilled images, one strip of each class, as
        [`save_grid`][rcig_eqx.save_grid] writes it. `ValueError` for what is no image."""
        return plot_grid(self.coreset, self.class_names, title=title, clip=clip)

    def plot_history(self, names: Sequence[str] = CURVES) -> Any:
        """A matplotlib figure of curves of `history` by their names, side by side.

        Needs matplotlib, the extra `plot`. `ValueError` if the history has none of them.
        """
        return history_figure(self.history, names)

    def to_torch(self) -> tuple[Any, Any]:
        """The distilled set as tensors of PyTorch: images `[n c h w]`, other inputs `[n *shape]`,
        and labels `[n classes]`, float32.

        Images are preprocessed, as test images must be. Mirror images are not among them; train on
        them too, with the same labels, where `coreset.flip` is `True`. `ImportError` without
        PyTorch.
        """
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("Tensors need PyTorch: pip install 'rcig-eqx[torch]'.") from error
        images, labels = (np.array(x) for x in (self.coreset.images, self.coreset.labels))
        if images.ndim == 4:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return torch.from_numpy(images), torch.from_numpy(labels)

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its last step."""
        return self.recipe["steps_done"] < self.recipe["steps"]

    def save(self, path: str | os.PathLike[str], *, whole: bool = True) -> Path:
        """Write one safetensors file: arrays, and the rest as JSON in its header.

        The file appears under its name only once it is complete. A set of a parameterization that
        packs is stored as the parameterization has it. Where `whole` is `False`, the file leaves
        out `last`, `baseline`, `draws`, the history and all but a few of the settings: such a set
        takes its bits, its preprocessing, and a header of some 2 KB. Its `last` and `baseline` have
        no images once it is read.

        Raises `ValueError` for what `load_result` would refuse, `OSError` if it cannot be written,
        and leaves what stood there before.
        """
        check_flags(whole=whole)
        preprocess, packed = self.coreset.preprocess, self.stored
        assert preprocess is not None, "a result's coreset carries its preprocessing"
        preprocess_config, preprocess_arrays = to_state(preprocess)
        arrays = under("preprocess", preprocess_arrays)
        for name in _CORESETS if whole else _CORESETS[:1]:
            own = {field: getattr(getattr(self, name), field) for field in _FIELDS}
            if len(own["images"]):
                arrays |= under(name, packed.arrays if packed and name == "coreset" else own)
        arrays |= under("history", self.history) if whole else {}
        if self.draws is not None and whole:
            arrays["draws.images"] = self.draws
        card = {
            "format": FORMAT if whole and not packed else PACKED,
            "class_names": self.class_names,
            "labels": "one row an image, learned from one-hot - 1/classes; not probabilities",
            "images": "[n *shape], images n h w c, preprocessed",
            "flip": self.coreset.flip,
            "preprocess": preprocess_config,
            "recipe": {k: v for k, v in self.recipe.items() if whole or k in _SHORT},
        }
        card |= {"storage": packed.layout} if packed else {}
        arrays = {name: np.asarray(value) for name, value in arrays.items()}
        try:
            _assemble(json.loads(json.dumps(card)), arrays, preprocess)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"This result cannot be kept: {error}.") from error
        return write_checked(path, card, arrays)


_SHORT = (
    "dataset", "images_per_class", "steps", "steps_done", "model", "bits", "bits_per_class",
    "balanced", "read", "hold_out",
)  # fmt: skip
_CORESETS = ("coreset", "last", "baseline")
_FIELDS = ("images", "labels", "log_temperature")


def load_result(
    path: str | os.PathLike[str], *, preprocess: AbstractPreprocess | None = None
) -> DistillResult:
    """Read a file written by `DistillResult.save`. Nothing in it is executed.

    The folder of a run stands for its `distilled.safetensors`. A set with a preprocessing of your
    own class needs an instance of it as `preprocess`, whose arrays are then read from the file;
    others need none.

    Raises `FileNotFoundError`, or `DataError` for a file that is damaged, truncated, or no
    distilled set.
    """
    path = result_file(path)
    card, arrays = read_checked(path, (FORMAT, PACKED), "distilled set")
    with damage_named(path, "distilled set"):
        if "storage" in card and card["format"] != PACKED:
            raise ValueError("it is packed, and its format is not")
        return _assemble(card, arrays, preprocess)


def result_file(path: str | os.PathLike[str]) -> Path:
    """The file of a result, where its folder is named."""
    path = user_path(path)
    return path / RESULT if path.is_dir() else path


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
    history = within("history", arrays)
    if any(series.ndim != 1 for series in history.values()):
        raise ValueError("the history does not have one number per step")
    packed = _packed(card, within("coreset", arrays)) if "storage" in card else None
    if packed:
        arrays = {name: a for name, a in arrays.items() if not name.startswith("coreset.")}
        images, labels = packed.decode()
        temperature = packed.arrays["log_temperature"]
        arrays |= under("coreset", dict(zip(_FIELDS, (images, labels, temperature), strict=True)))
    for name in arrays.keys() - under("history", history).keys():
        if arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds NaN, infinite or no float32 values")
    preprocess = from_state(card["preprocess"], within("preprocess", arrays), own)
    coresets = {}
    for name in _CORESETS:
        if card["format"] == PACKED and name != "coreset" and not within(name, arrays):
            first = coresets["coreset"]  # this set was left out
            parts = (lambda c: (c.images, c.labels)), first, (first.images[:0], first.labels[:0])
            coresets[name] = eqx.tree_at(*parts)
            continue
        stored = [arrays[f"{name}.{field}"] for field in _FIELDS]
        coresets[name] = _coreset(stored, name, len(names), preprocess, flip)
    draws = arrays.get("draws.images")
    if draws is not None and draws.shape[1:] != coresets["baseline"].images.shape:
        raise ValueError(f"the draws have images {draws.shape}, which are no other baselines")
    return DistillResult(
        **coresets,
        class_names=tuple(names),
        recipe=recipe,
        history=history,
        draws=draws,
        packed=packed,
    )


def _packed(card: dict[str, Any], arrays: dict[str, np.ndarray]) -> Packed:
    """The packed arrays, after all that decoding takes for granted has been checked."""
    expected, _ = check_layout(card["storage"])
    check_arrays(arrays, expected | {"log_temperature": ("float32", {()})})
    return Packed(arrays, {field: card["storage"][field] for field in ("images", "labels")})


def _coreset(
    parts: list[np.ndarray], name: str, classes: int, preprocess: AbstractPreprocess, flip: bool
) -> Coreset:
    """A set of its arrays, or `ValueError` if they make none."""
    images, labels, log_temperature = parts
    fits = images.ndim == 4 if flip else images.ndim > 1
    fits = fits and 0 not in images.shape
    if not fits or log_temperature.shape or labels.shape != (len(images), classes):
        raise ValueError(
            f"{name} has images {images.shape}, labels {labels.shape} and log_temperature "
            f"{log_temperature.shape}, which make no set of {classes} classes"
        )
    if jax.eval_shape(preprocess.inverse, images).shape != images.shape:
        raise ValueError("the preprocessing is for other images")
    X, y, temperature = map(jnp.asarray, parts)
    return Coreset(X, y, temperature, preprocess, flip=flip)
