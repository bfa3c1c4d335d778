"""A published set read: its files found, checked, and turned into a `Coreset`."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ..._checks import ArgumentError, check_counts, check_flags, check_known
from ..._coreset import Coreset, centered_labels
from ...data import AbstractPreprocess, Identity, Standardize, apply_in_chunks
from ...data._names import class_names_of
from ...data._paths import user_path
from .._files import damage_named
from . import LAYOUTS
from ._layout import AbstractLayout, check_size

_MOST_LABELS = 2**28  # numbers: 1,000 classes of 268 images
_NUMBERED = r"(?:new|class)?_?(\d{1,9})"


@dataclasses.dataclass(frozen=True)
class Published:
    """A set that others have published.

    - `coreset`: the set, class after class where its labels are hard, with its preprocessing.
    - `class_names`: one per class: `evaluate(p.coreset, test, class_names=p.class_names, key=…)`.
    - `layout`: the name of its layout in `LAYOUTS`.
    - `labels`: `"soft"` where the file has a row per image, which is kept as it is; `"hard"` where
      it has class numbers or none, which become one-hot − 1/C.
    - `learning_rate`: that of training on the set, if the files tell it.
    - `experiments`: the number of sets that the file holds, of which this is one.
    """

    coreset: Coreset
    class_names: tuple[str, ...]
    layout: str
    labels: Literal["hard", "soft"]
    learning_rate: float | None = None
    experiments: int = 1


def load_published(
    path: str | os.PathLike[str],
    *,
    preprocess: AbstractPreprocess | str | None = None,
    layout: str | None = None,
    normalized: bool | None = None,
    flip: bool | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    experiment: int = 0,
) -> Published:
    """Read a distilled set of another project. Nothing in its files is executed.

    | `layout` | of | files | needs |
    |---|---|---|---|
    | `"dc"` | DC, DSA, DM | one `.pt` with all experiments | PyTorch |
    | `"mtt"` | MTT, DATM | `images_best.pt`, `labels_best.pt`, `lr_best.pt` | PyTorch |
    | `"dd_ranking"` | DD-Ranking | `images.pt`, `labels.pt`, `lr.pt` | PyTorch |
    | `"ncfm"` | NCFM | `data_*.pt` | PyTorch |
    | `"rat_bptt"` | RaT-BPTT, AT-BPTT | `.h5`, or `.pth` | h5py, or PyTorch |
    | `"frepo"` | FRePo | `.npz` | |
    | `"rcig"` | RCIG | `.msgpack`, or `checkpoint_15000` | msgpack |
    | `"image_folders"` | SRe2L, RDED | a folder of pictures per class | pillow |
    | `"hf"` | `write_published` | `data/train-*.parquet` | datasets |

    The extra `published` installs h5py and msgpack. PyTorch must be 2.10 or later: earlier ones let
    a file run code. What the files do not say is an argument.

    **Arguments:**

    - `path`: a file, or the folder of one set. Of several in a folder that of the best iteration.
    - `preprocess`: what turns a test image into the space of the stored images. Needed unless the
      images are pixels; those go through it here, or stay as they are. Of FRePo and RCIG,
      `data.zca(train.images)`, of gray images `data.standardize(train.images)`. Of `"dc"`, `"mtt"`
      and `"dd_ranking"`, the name of the data set, such as `"cifar10"`, for the mean and standard
      deviation that the authors take. Their whitened sets went through another ZCA, with an `eps`
      of 0.1 on pixels in [0, 1]: of MTT, read `images_zca_*.pt`, which are pixels.
    - `layout`: a name in `LAYOUTS`; by default, told by the names of the files.
    - `normalized`: whether the images are stored preprocessed. By default, all are but those of
      NCFM, of pictures, and `images_zca_*.pt`, which are pixels in [0, 1], the last unbounded.
    - `flip`: whether the set stands for its mirror images too, which no file tells. By default,
      `True` for RGB sets of RCIG and FRePo, which were distilled so: without mirroring RCIG's lose
      half of their accuracy. `False` for all others, whose authors mirror at random if at all.
    - `num_classes`: needed of files without labels, and of hard ones that leave out classes.
    - `class_names`: one per class, in the order of the class numbers; by default the names of
      folders, or numbers. Folders find their class by their name, or by their number, as `3` or
      `new003`.
    - `experiment`: which of several sets in a file of `"dc"`.

    Soft labels are whatever the authors train on: DATM's are logits, of which they take the
    softmax. Pictures of NCFM that hold several smaller ones are not taken apart.

    Raises `FileNotFoundError`, `ImportError` for a package that is lacking, `ValueError` for
    arguments that do not fit, and `DataError`, one of its kind, for files that are damaged, hostile
    or of another layout.
    """
    flags = {"normalized": normalized, "flip": flip}
    check_flags(**{name: value for name, value in flags.items() if value is not None})
    check_counts(num_classes=1 if num_classes is None else num_classes)
    names = None if class_names is None else class_names_of(class_names)
    name, made, file = _find(user_path(path), layout)
    if normalized is None:
        normalized = not re.fullmatch(made.pixels, file.name)
    preprocess = _stated(preprocess, name, made, normalized)
    with damage_named(file, f"set of the layout {name!r}"):
        if file.is_file():
            check_size(file)
        sets = made.read(file)
        told = range(len(sets))
        stored = sets[experiment if experiment in told else 0]
        images = _images(stored.images, normalized, bool(re.fullmatch(made.unbounded, file.name)))
        labels = _labels(stored.labels, len(images))
        rate = stored.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(f"its learning rate is {rate}")
    if experiment not in told:
        raise ArgumentError("experiment", f"is {experiment!r}: pass one of 0 to {len(sets) - 1}.")
    labels, names = _by_name(labels, stored.class_names, names)
    if num_classes and names and num_classes != len(names):
        raise ArgumentError("num_classes", f"is {num_classes}, and there are {len(names)} names.")
    order, rows = _targets(labels, len(images), len(names) if names else num_classes)
    _check_preprocess(preprocess, images)
    if not normalized:
        images = apply_in_chunks(preprocess, images)
    mirrored = made.mirrored and images.shape[3] == 3 if flip is None else flip
    parts = jnp.asarray(images[order]), jnp.asarray(rows), jnp.zeros((), jnp.float32)
    coreset = Coreset(*parts, preprocess, flip=mirrored)
    names = names or tuple(map(str, range(coreset.num_classes)))
    kind = "soft" if labels is not None and labels.ndim == 2 else "hard"
    return Published(coreset, names, name, kind, rate, len(sets))


def _find(path: Path, layout: str | None) -> tuple[str, AbstractLayout, Path]:
    """The layout of a set, and the file to read it from, by the names of files alone."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if layout is not None:
        check_known("layout", layout, LAYOUTS)
    for name in LAYOUTS if layout is None else [layout]:
        made = LAYOUTS[name]()
        files = made.find(path) or ([path] if layout and path.is_file() else [])
        if files := [file for file in files if "best" in file.stem] or files:
            if len(files) > 1:
                problem = f"{path} has {len(files)} files of the layout {name!r}"
                raise ArgumentError("path", f"{problem}: pass the one of a set.")
            return name, made, files[0]
    raise ArgumentError("layout", f"is not told by names in {path}: pass one of {list(LAYOUTS)}.")


def _stated(
    preprocess: AbstractPreprocess | str | None,
    layout: str,
    made: AbstractLayout,
    normalized: bool,
) -> AbstractPreprocess:
    """The preprocessing that a caller states, where it must be stated."""
    own = "data.zca(train.images), of gray images data.standardize(train.images)"
    such = 'the name of its data set, such as "cifar10"' if made.constants else own
    if preprocess is None and normalized:
        raise ArgumentError(
            "preprocess",
            f"is missing, and images of the layout {layout!r} are stored preprocessed. Pass {such}"
            ", or normalized=False if they are pixels.",
        )
    if not isinstance(preprocess, str):
        return Identity() if preprocess is None else preprocess
    if not made.constants:
        problem = f"is {preprocess!r}, and the layout {layout!r} has no constants: pass {own}."
        raise ArgumentError("preprocess", problem)
    check_known("preprocess", preprocess, made.constants)
    return Standardize(*(jnp.asarray(x, jnp.float32) for x in made.constants[preprocess]))


def _images(
    images: Shaped[np.ndarray, "..."], normalized: bool, unbounded: bool
) -> Shaped[np.ndarray, "n h w c"]:
    """The images as float32, or as pixels of uint8. `ValueError` for what are none."""
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"its images are {list(images.shape)}, not [n h w c]")
    if images.dtype == np.uint8 and not normalized:
        return images
    if images.dtype.kind != "f":
        raise ValueError(f"its images are {images.dtype}: pass normalized=False if they are pixels")
    images = _finite(images, "images")
    if not (normalized or unbounded) and (images.min() < -0.5 or images.max() > 1.5):
        reach = f"{images.min():.3g} to {images.max():.3g}"
        raise ValueError(f"its images reach from {reach}, pixels from 0 to 1: pass normalized=True")
    return images


def _labels(labels: np.ndarray | None, images: int) -> np.ndarray | None:
    """Class numbers [n], or rows of float32 [n classes]. `ValueError` for anything else."""
    if labels is None:
        return None
    shape = labels.shape
    fits = len(shape) in (1, 2) and shape[0] == images and labels.size
    if not fits or labels.dtype.kind not in "fiu":
        raise ValueError(f"its labels are {labels.dtype} {list(shape)} of {images} images")
    rows = _finite(labels, "labels")
    if labels.ndim == 2:
        return rows
    numbers = labels.astype(np.int64)
    if (numbers != labels).any() or numbers.min() < 0:
        raise ValueError("its labels are no class numbers")
    return numbers


def _by_name(
    labels: np.ndarray | None, stored: tuple[str, ...] | None, given: tuple[str, ...] | None
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels as numbers of the given classes, found by the stored names, and the classes' names."""
    if stored is None or labels is None:
        return labels, given or stored
    known = {name: number for number, name in enumerate(given or ())}
    numbers = [int(found[1]) for name in stored if (found := re.fullmatch(_NUMBERED, name))]
    if known.keys() >= set(stored):
        numbers = [known[name] for name in stored]
    elif len(set(numbers)) < len(stored):
        if given is not None:
            lacking = next(name for name in stored if name not in known)
            raise ArgumentError("class_names", f"lack {lacking!r}: name all classes of the set.")
        return labels, stored
    if labels.ndim == 2:
        return labels[:, np.argsort(numbers)], given
    return np.array(numbers)[labels], given


def _finite(array: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"its {what} are NaN or infinite as float32")
    return array


def _targets(
    labels: np.ndarray | None, images: int, told: int | None
) -> tuple[Shaped[np.ndarray, " n"], Float[np.ndarray, "n classes"]]:
    """The order of the images, by class where labels are hard, and their labels in this order."""
    what = f"(or the length of class_names) is {told}"
    if labels is not None and labels.ndim == 2:
        if told not in (None, labels.shape[1]):
            raise ArgumentError("num_classes", f"{what}, and labels are rows of {labels.shape[1]}.")
        return np.arange(images), labels
    if labels is None:
        if told is None or images % told:
            raise ArgumentError(
                "num_classes", f"{what}, and {images} images have no labels: pass one that divides."
            )
        labels = np.repeat(np.arange(told), images // told)
    reached = int(labels.max()) + 1
    if reached > (told or images):
        raise ArgumentError("num_classes", f"{what}, and labels reach {reached - 1}: pass more.")
    classes = int(told or reached)
    if images * classes > _MOST_LABELS:
        problem = f"{what}, and {images:,} images of {classes:,} classes are too many labels."
        raise ArgumentError("num_classes", problem)
    order = np.argsort(labels, kind="stable")
    return order, np.asarray(centered_labels(labels[order], classes))


def _check_preprocess(preprocess: AbstractPreprocess, like: Shaped[np.ndarray, "n h w c"]) -> None:
    """Raise `ValueError` for what is no preprocessing of such images."""
    image = jax.ShapeDtypeStruct(like.shape, jnp.float32)
    try:
        there, back = (jax.eval_shape(f, image) for f in (preprocess, preprocess.inverse))
        fits = there.shape == back.shape == like.shape
    except (AttributeError, TypeError, ValueError):
        fits = False
    if not fits:
        shape = list(like.shape[1:])
        raise ArgumentError(
            "preprocess", f"is not for images {shape}: pass one such as data.standardize(train)."
        )
