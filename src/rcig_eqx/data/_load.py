"""`load`: a dataset by name, from wherever it is."""

import difflib
import hashlib
import io
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from ._dataset import DataError, Dataset
from ._download import cache_folder, download as fetch
from ._folder import ImageFolder
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

    - `name`: "mnist", "fashion_mnist", "cifar10", "cifar100"; "fashion_mnist_small", which comes
        with the package (500 train and 100 test images of each class, the first ones); or a path:
        an `.npz` with `images`, `labels` and perhaps `class_names`; a folder with `train.npz` and
        `test.npz`; or a folder of images, `<split>/<class>/*` or, for one split, `<class>/*`.
    - `split`: "train" or "test"; for a folder of images, the name of any split folder.
    - `directory`: looked in first, its folder `name` and then itself.
    - `download`: whether a set that is nowhere may be downloaded.
    - `mirror`: an address that holds the official files under their official names.

    A named set is looked for in `directory`, in the folder `$RCIG_EQX_DATA` names, where the system
    has it (`/usr/share/datasets`), then in the cache `~/.cache/rcig_eqx`, and is downloaded there
    at last. Each place may hold the official files as they come, unpacked or not, or `train.npz`
    and `test.npz`.

    **Returns** a `Dataset`, uint8 unless an `.npz` holds floats. Raises `ValueError` for a name or
    split that does not exist, `DataError` for files that are missing, damaged or of another set.
    """
    known = [*SOURCES, _EMBEDDED]
    if isinstance(name, str) and name in known:
        if split not in SPLITS:
            raise ValueError(_unknown("split", split, SPLITS))
        if name == _EMBEDDED:
            return _load_embedded(split)
        return _load_named(name, split, directory, download, mirror)
    path = Path(name).expanduser()
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
    raise ValueError(f"{_unknown('dataset', name, known)} Or give the path of an .npz or a folder.")


def _load_named(
    name: str,
    split: str,
    directory: str | os.PathLike[str] | None,
    download: bool,
    mirror: str | None,
) -> Dataset:
    source = SOURCES[name]
    if directory is not None and not Path(directory).expanduser().is_dir():
        raise DataError(f"directory={str(directory)!r} is not a folder: check the path.")
    cache = cache_folder() / name
    folders = list(_folders(name, source, directory))
    for folder in [*folders, cache]:
        dataset = _read_folder(name, source, split, folder)
        if dataset is not None:
            return dataset
    if not download:
        looked = ", ".join(str(f) for f in [*folders, cache])
        raise DataError(
            f"{source.title} ({split}) is in none of {looked}: place "
            f"{' and '.join(source.downloads(split))} in one of them, or allow download=True."
        )
    fetch(source, split, cache, mirror=mirror)
    dataset = _read_folder(name, source, split, cache)
    assert dataset is not None  # every file of the split was just put there
    return dataset


def _folders(name: str, source: Source, directory: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Every existing folder, before the cache, that may hold the set, in order of preference."""
    given = [Path(p).expanduser() for p in (directory, os.environ.get(ENVIRONMENT)) if p]
    for root in [*given, SYSTEM_FOLDER]:
        below = [root / name, root / name.replace("_", "-"), *(root / f for f in source.folders)]
        for folder in [*below, *([root] if root in given else [])]:
            if folder.is_dir():
                yield folder


def _read_folder(name: str, source: Source, split: str, folder: Path) -> Dataset | None:
    npz = folder / f"{split}.npz"
    if npz.is_file():
        dataset = _read_npz(npz, source.class_names)
        images, labels, names = dataset.images, dataset.labels, dataset.class_names
    else:
        arrays = source.read(folder, split)
        if arrays is None:
            return None
        (images, labels), names = arrays, source.class_names
    if images.shape[1:] != source.image_shape or names != source.class_names:
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
    if (path / f"{split}.npz").is_file():
        return _read_npz(path / f"{split}.npz")
    inside = sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))
    splits = [d.name for d in inside if any(e.is_dir() for e in d.iterdir())]
    if split in splits:
        return ImageFolder(path / split).read()
    if splits or split != "train":
        raise ValueError(
            f"{path} has no split {split!r}: it has {', '.join(splits) or 'images of one split'}. "
            f"Add {path / split}/<class>/, or choose split='train' where the classes lie in the "
            "folder itself."
        )
    return ImageFolder(path).read()


def _load_embedded(split: str) -> Dataset:
    file = resources.files("rcig_eqx.data") / "embedded" / f"{_EMBEDDED}.npz"
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return Dataset(images, labels, SOURCES["fashion_mnist"].class_names, _EMBEDDED)


def _read_npz(file: Path, class_names: tuple[str, ...] | None = None) -> Dataset:
    """The dataset in `file`; `class_names` stands in for names it does not hold."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
            if "class_names" in arrays:
                class_names = tuple(str(c) for c in arrays["class_names"])
    except Exception as error:  # a damaged archive fails in as many ways as zip and npy have parts
        raise DataError(
            f"{file} cannot be read as an .npz of plain arrays ({error}): "
            "write it again with np.savez_compressed(file, images=..., labels=...)."
        ) from error
    return _checked(images, labels, class_names, file.stem, str(file))


def _checked(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...] | None,
    name: str,
    where: str,
) -> Dataset:
    try:
        return Dataset.from_arrays(images, labels, class_names, name=name)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _unknown(what: str, given: str, valid: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, valid, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"There is no {what} {given!r}.{hint} There are: {', '.join(valid)}."
