"""`load`: a dataset by name, from wherever it is."""

import difflib
import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .._registry import Registry
from ._archives import opened_zip
from ._cache import cache_folder
from ._dataset import DataError, Dataset
from ._download import download as fetch
from ._folder import ImageFolder
from ._imagenet import NAME as TOO_LARGE
from ._npy import read_npz
from ._paths import user_path
from ._pictures import is_image_like
from ._sources import LABELS_MD5, SOURCES, SPLITS, Source

ENVIRONMENT = "RCIG_EQX_DATA"
SYSTEM_FOLDER = Path("/usr/share/datasets")  # where Debian's dataset packages put them
_EMBEDDED = "fashion_mnist_small"


def load(
    name: str | os.PathLike[str],
    split: str = "train",
    *,
    directory: str | os.PathLike[str] | None = None,
    download: bool = True,
    mirror: str | None = None,
) -> Dataset:
    """A dataset by name, or from a file or folder of yours.

    **Arguments:**

    - `name`: "mnist", "fashion_mnist", "cifar10", "cifar100"; "tiny_imagenet" (64 pixels, 200
        classes), "cub200" (32, 200), "imagenette" and "imagewoof" (128, 10 each), whose images are
        brought to these sizes by `resize`; "fashion_mnist_small", which
        comes with the package (500 train and 100 test images of each class, the first ones); or a
        path:
        an `.npz` with `images`, `labels` and perhaps `class_names`; a folder with `train.npz` and
        `test.npz`; or a folder of images, `<split>/<class>/*` or, for one split, `<class>/*`.
    - `split`: "train" or "test"; for a folder of images, the name of any split folder.
    - `directory`: looked in first, its folder `name` and then itself.
    - `download`: whether a set that is nowhere may be downloaded.
    - `mirror`: an address that holds the official files under their official names.

    A named set is looked for in `directory`, in the folder `$RCIG_EQX_DATA` names, where the system
    has it (`/usr/share/datasets`), then in the cache `~/.cache/rcig_eqx`, and is downloaded there
    at last. Each place may hold the official files as they come, unpacked or not, or `train.npz`
    and `test.npz`. Archives are read in one pass, and not extracted. The validation images of
    Tiny-ImageNet, Imagenette and ImageWoof are their test split: other labels there are none.
    "imagenet64" is for [`open_records`][rcig_eqx.data.open_records]. Further names are those in
    [`DATASETS`][rcig_eqx.data.DATASETS].

    **Returns** a `Dataset`, uint8 unless an `.npz` holds floats. Raises `ValueError` for a name or
    split that does not exist, `DataError` for files that are missing, damaged or of another set.
    """
    if isinstance(name, str) and name in DATASETS:
        made = DATASETS[name](split, directory, download=download, mirror=mirror)
        if not isinstance(made, Dataset):
            raise DataError(f"{name} made a {type(made).__name__}: it must make a Dataset.")
        return made
    path = user_path(name)
    if path.is_dir():
        return _load_folder(path, split)
    if path.suffix == ".npz" and path.is_file():
        if split not in ("train", path.stem):
            raise ValueError(
                f"{path} holds one split, so split={split!r} cannot be chosen from it: "
                "choose split='train', or give the path of the file that holds the other."
            )
        return _read_npz(path)
    if not isinstance(name, str) or path.suffix == ".npz" or len(path.parts) > 1:
        raise DataError(f"there is no .npz file or folder {path}: check the path.")
    listed = unknown("dataset", name, list(DATASETS))
    raise ValueError(f"{listed} Or give the path of an .npz or a folder.")


def _load_named(
    name: str,
    split: str,
    directory: str | os.PathLike[str] | None,
    *,
    download: bool,
    mirror: str | None,
) -> Dataset:
    """One of the official sets, downloaded if it is nowhere."""
    source = SOURCES[name]
    _check_split(split)
    check_directory(directory)
    looked: list[Path] = []
    for folder in folders_of(name, source.folders, directory):
        dataset = _read_folder(name, source, split, folder)
        if dataset is not None:
            return dataset
        looked.append(folder)
    if not download:
        raise DataError(
            f"{source.title} ({split}) is in none of {', '.join(map(str, looked))}: place "
            f"{' and '.join(source.downloads(split))} in one of them, or allow download=True."
        )
    cache = looked[-1]
    by_hand = user_path(directory) / name if directory else None
    fetch(source, split, cache, mirror=mirror, by_hand=by_hand)
    dataset = _read_folder(name, source, split, cache)
    assert dataset is not None  # every file of the split was just put there
    return dataset


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))


def check_directory(directory: str | os.PathLike[str] | None) -> None:
    """Raise `DataError` for a directory that is given and not there."""
    if directory is not None and not user_path(directory).is_dir():
        raise DataError(f"the directory {str(directory)!r} is not a folder: check the path.")


def folders_of(
    name: str, others: Sequence[str], directory: str | os.PathLike[str] | None
) -> Iterator[Path]:
    """Every existing folder that may hold the set, in order of preference, and the cache at last.

    `others` are further names a folder of this set goes by.
    """
    given = [user_path(p) for p in (directory, os.environ.get(ENVIRONMENT)) if p]
    for root in [*given, SYSTEM_FOLDER]:
        below = [root / name, root / name.replace("_", "-"), *(root / other for other in others)]
        for folder in [*below, *([root] if root in given else [])]:
            if folder.is_dir():
                yield folder
    yield cache_folder() / name


def _read_folder(name: str, source: Source, split: str, folder: Path) -> Dataset | None:
    npz = folder / f"{split}.npz"
    if npz.is_file():
        dataset = _read_npz(npz, source.class_names or None)
        images, labels, names = dataset.images, dataset.labels, dataset.class_names
    else:
        arrays = source.read(folder, split)
        if arrays is None:
            return None
        images, labels, *read = arrays
        names = read[0] if read else source.class_names
        if source.counts and len(images) != source.counts[split]:
            raise DataError(
                f"{folder} holds {len(images)} images of {source.title} ({split}), of "
                f"{source.counts[split]}: it is incomplete or not the official set; get it again."
            )
    if images.shape[1:] != source.image_shape or source.class_names not in ((), names):
        raise DataError(
            f"{folder} holds images of shape {images.shape[1:]} and {len(names)} classes, which is "
            f"not {source.title} ({source.image_shape}): give the folder of {source.title}."
        )
    really = LABELS_MD5.get(
        hashlib.md5(labels.astype(np.uint8).tobytes(), usedforsecurity=False).hexdigest(),
        (name, split),
    )
    if really != (name, split):
        raise DataError(
            f"{folder} holds the labels of {SOURCES[really[0]].title} ({really[1]}) where those of "
            f"{source.title} ({split}) are looked for: give the folder of {source.title}."
        )
    return _checked(images, labels, names, name, str(folder))


def _load_folder(path: Path, split: str) -> Dataset:
    place = place_of_split(path, split)
    return _read_npz(place) if place.is_file() else ImageFolder(place).read()


def place_of_split(path: Path, split: str) -> Path:
    """The `.npz` or the folder of classes that a split lies in; `ValueError` if there is none."""
    if (path / f"{split}.npz").is_file():
        return path / f"{split}.npz"
    below = _folders(path)
    splits = [d.name for d in below if not _has_images(d) and any(map(_has_images, _folders(d)))]
    if split in splits:
        return path / split
    if split != "train" or (splits and not any(map(_has_images, below))):
        raise ValueError(
            f"{path} has no split {split!r}: it has {', '.join(splits) or 'images of one split'}. "
            f"Add {path / split}/<class>/, or choose split='train' where the classes lie in the "
            "folder itself."
        )
    return path


def _folders(path: Path) -> list[Path]:
    """The folders in a folder by name, without hidden ones and those that a Mac adds to a zip."""
    return sorted(
        d for d in path.iterdir() if d.is_dir() and not d.name.startswith((".", "__MACOSX"))
    )


def _has_images(folder: Path) -> bool:
    """Whether a folder is a class, which has images, or a split, which has classes."""
    return any(is_image_like(file.name) for file in folder.iterdir())


def _load_embedded(split: str, directory: object, **_: Any) -> Dataset:
    """The set that comes with the package."""
    _check_split(split)
    names = (f"{split}_images", f"{split}_labels")
    file = resources.files("rcig_eqx.data") / "embedded" / f"{_EMBEDDED}.npz"
    with resources.as_file(file) as path, opened_zip(path) as archive:
        arrays = read_npz(archive, names)
    images, labels = (arrays[name] for name in names)
    return Dataset(images, labels, SOURCES["fashion_mnist"].class_names, _EMBEDDED)


def _too_large(split: str, directory: object, **_: Any) -> Dataset:
    raise ValueError(
        f"{TOO_LARGE} is too large to hold: data.open_records({TOO_LARGE!r}, {split!r}, "
        "directory=...) writes it to disk once, and distill and evaluate stream it from there."
    )


DATASETS: Registry[Dataset] = Registry(
    "datasets",
    **{name: partial(_load_named, name) for name in SOURCES},
    **{_EMBEDDED: _load_embedded, TOO_LARGE: _too_large},
)
"""Data sets by name: functions of the split and the folder to look in first, `None` if there is
none, to a `Dataset`. They are called with `download` and `mirror` of `load` too; end the arguments
in `**_` where these have no use."""


def _read_npz(file: Path, class_names: tuple[str, ...] | None = None) -> Dataset:
    """The dataset in `file`; `class_names` stands in for names it does not hold."""
    try:
        with opened_zip(file) as archive:
            arrays = read_npz(archive, ("images", "labels", "class_names"))
        images, labels = arrays["images"], arrays["labels"]
    except Exception as error:  # a damaged archive fails in as many ways as zip and npy have parts
        raise DataError(
            f"{file} cannot be read as an .npz of plain arrays ({error}): "
            "write it again with np.savez_compressed(file, images=..., labels=...)."
        ) from error
    return _checked(images, labels, arrays.get("class_names", class_names), file.stem, str(file))


def _checked(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Any,
    name: str,
    where: str,
) -> Dataset:
    try:
        return Dataset.from_arrays(images, labels, class_names, name=name)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def unknown(what: str, given: str, valid: Sequence[str]) -> str:
    """What to say of a name that does not exist: the nearest ones, and all."""
    near = difflib.get_close_matches(given, valid, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"There is no {what} {given!r}.{hint} There are: {', '.join(valid)}."
