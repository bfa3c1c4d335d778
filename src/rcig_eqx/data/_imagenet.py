"""ImageNet-1k at 64 pixels, from each of the forms it is handed out in, one image at a time."""

import contextlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8

from ._archives import (
    Binary,
    Entry,
    damage_named,
    entries,
    nested_tar_entries,
    opened_zip,
    ordered,
    tar_names,
)
from ._dataset import DataError
from ._matlab import read_mat
from ._npy import read_header, read_npz
from ._records import Stream
from ._resize import decode

NAME, SIZE = "imagenet64", 64
COUNTS = {"train": 1_281_167, "test": 50_000}

_BATCHES = {
    "train": tuple(f"train_data_batch_{i}.npz" for i in range(1, 11)),
    "test": ("val_data.npz",),
}
_ZIPS = "Imagenet64_*_npz.zip"  # train_part1, train_part2 and val
_TARS = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
_FOLDERS = {"train": "train", "test": "val"}
_DEVKIT, _TRUTH = "ILSVRC2012_devkit_t12", "ILSVRC2012_validation_ground_truth.txt"
_ROWS = 1024  # images of a batch file read together: 12 MB

HOW_TO_GET = (
    "It cannot be downloaded for you: register at https://image-net.org, accept its terms, and get "
    f"either {_TARS['train']}, {_TARS['test']} and {_DEVKIT}.tar.gz (ILSVRC2012), or the 64x64 "
    "images as npz, Imagenet64_train_part1_npz.zip, Imagenet64_train_part2_npz.zip and "
    f"Imagenet64_val_npz.zip, extracted ({_BATCHES['train'][0]} to 10, {_BATCHES['test'][0]}) or "
    "not; train/<wnid>/ and val/<wnid>/ do as well"
)

Item = tuple[UInt8[np.ndarray, "h w 3"], int]
Place = tuple[Path, str | None]
"""A file, or a zip and the name of its member."""


def find_imagenet(folder: Path, split: str) -> Stream | None:
    """The split that lies in `folder`, in whichever form; `None` if none does.

    - The official down-sampled batches, `train_data_batch_1.npz` to 10 and `val_data.npz`, here,
      one folder down or in the official zips, `Imagenet64_*_npz.zip`. Their classes have the
      numbers they are given there, and these for names, "1" to "1000", or WordNet numbers where
      `map_clsloc.txt` lies beside them.
    - The official tars of ILSVRC2012, that of the validation images with the devkit.
    - `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, or `val/*.JPEG` with the devkit.

    The classes of the last two are sorted by WordNet number, which is their name. The validation
    images are the test split. `DataError` for a form of which a part is missing.
    """
    if batches := _batches(folder):
        files = [batches[file] for file in _BATCHES[split] if file in batches]
        missing = [file for file in _BATCHES[split] if file not in batches]
        if missing:
            raise DataError(
                f"{folder} has down-sampled batches, but lacks {', '.join(missing)}: get these as "
                "well, or move the others away: classes have other numbers in other forms."
            )
        return Stream(NAME, _names_of_batches(folder), COUNTS[split], _of_batches(files))
    tar, extracted = folder / _TARS[split], folder / _FOLDERS[split]
    if split == "train" and tar.is_file():
        wnids = {PurePosixPath(n).stem for n in tar_names(tar) if n.endswith(".tar")}
        return _stream(sorted(wnids), split, nested_tar_entries(tar))
    if split == "test" and tar.is_file():
        return _validation(folder, entries(tar))
    if not extracted.is_dir():
        return None
    inside = sorted(place.name for place in extracted.iterdir())
    wnids = [name for name in inside if re.fullmatch(r"n\d+", name)]
    if wnids:
        return _stream(wnids, split, entries(extracted))
    if split == "test" and any(name.startswith("ILSVRC2012_val_") for name in inside):
        return _validation(folder, entries(extracted))
    return None  # a folder of something else


def _stream(wnids: list[str], split: str, files: Iterator[Entry]) -> Stream:
    """Images whose folder is their class."""
    number = {wnid: i for i, wnid in enumerate(wnids)}

    def named() -> Iterator[tuple[Entry, int]]:
        for entry in _images(files):
            wnid = entry.name.split("/")[0]
            if wnid in number:
                yield entry, number[wnid]

    return Stream(NAME, tuple(wnids), COUNTS[split], _decoded(named()))


def _validation(folder: Path, files: Iterator[Entry]) -> Stream:
    """Images whose number in their name tells their class, by the devkit."""
    truth, wnids = _devkit(folder)
    number = {wnid: i for i, wnid in enumerate(sorted(wnids.values()))}

    def named() -> Iterator[tuple[Entry, int]]:
        for entry in _images(files):
            digits = PurePosixPath(entry.name).stem.rsplit("_", 1)[-1]
            if not (digits.isdigit() and 1 <= int(digits) <= len(truth)):
                raise DataError(f"{entry.where} is none of the validation images: remove it.")
            yield entry, number[wnids[truth[int(digits) - 1]]]

    return Stream(NAME, tuple(number), COUNTS["test"], _decoded(named()))


def _images(files: Iterator[Entry]) -> Iterator[Entry]:
    for entry in files:
        name = PurePosixPath(entry.name)
        if name.suffix.lower() in (".jpeg", ".jpg", ".png") and not name.name.startswith("."):
            yield entry


def _decoded(named: Iterator[tuple[Entry, int]]) -> Iterator[Item]:
    read = ((entry.where, entry.read(), label) for entry, label in named)
    return ordered(lambda x: (decode(x[1], x[0], channels=3, size=SIZE), x[2]), read)


def _devkit(folder: Path) -> tuple[list[int], dict[int, str]]:
    """The class id of each validation image, and the WordNet number of each id."""
    place = folder / _DEVKIT
    place = place if place.is_dir() else folder / f"{_DEVKIT}.tar.gz"
    if not place.exists():
        raise DataError(f"{folder} lacks {_DEVKIT}.tar.gz, which has the validation labels.")
    found: dict[str, bytes] = {}
    for entry in entries(place):
        name = PurePosixPath(entry.name).name
        if name in (_TRUTH, "meta.mat"):
            found[name] = entry.read()
    try:
        truth = [int(line) for line in found[_TRUTH].split()]
        synsets = read_mat(found["meta.mat"], f"{place}:meta.mat")["synsets"]
        leaves = [synset for synset in synsets if synset["num_children"][0] == 0]
        wnids = {int(synset["ILSVRC2012_ID"][0]): synset["WNID"] for synset in leaves}
        if not set(truth) <= wnids.keys():
            raise ValueError("there are labels of no class")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{place} is damaged or not the official devkit ({type(error).__name__}: {error}): get "
            "it again."
        ) from error
    return truth, wnids


def _batches(folder: Path) -> dict[str, Place]:
    """Where each batch file that there is lies."""
    names = [file for files in _BATCHES.values() for file in files]
    found: dict[str, Place] = {}
    for zipped in sorted(folder.glob(_ZIPS)):
        with damage_named(zipped), opened_zip(zipped) as archive:
            members = {PurePosixPath(n).name: (zipped, n) for n in archive.namelist()}
            if members.keys().isdisjoint(names):  # cut, it can pass for one of the zips within
                raise zipfile.BadZipFile("it has no batch file")
            found |= {name: members[name] for name in names if name in members}
    for file in names:
        path = _below(folder, file)
        found |= {file: (path, None)} if path else {}
    return found


def _below(folder: Path, file: str) -> Path | None:
    places = (folder / file, *sorted(folder.glob(f"*/{file}")))
    return next(filter(Path.is_file, places), None)


def _names_of_batches(folder: Path) -> tuple[str, ...]:
    table = _below(folder, "map_clsloc.txt")
    if table is None:
        return tuple(str(i) for i in range(1, 1001))
    try:
        rows = [line.split() for line in table.read_text().splitlines() if line.strip()]
        names = {int(row[1]): row[0] for row in rows}
    except (ValueError, IndexError):
        names = {0: ""}
    if sorted(names) != list(range(1, len(names) + 1)):
        raise DataError(f"{table} does not number its classes from 1: get the official file.")
    return tuple(names[i] for i in sorted(names))


def _of_batches(files: list[Place]) -> Iterator[Item]:
    """Rows of batch files, a few at a time: each would take 1.6 GB."""
    for path, member in files:
        where = f"{path}:{member}" if member else path
        with damage_named(where), _opened(path, member) as file, opened_zip(file) as archive:
            lacking = {"labels.npy", "data.npy"} - set(archive.namelist())
            if lacking:
                raise ValueError(f"it has no {' and no '.join(sorted(lacking))}")
            labels = read_npz(archive, ["labels"])["labels"]
            if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 1:
                what = f"{labels.ndim}-dimensional {labels.dtype} from {labels.min()}"
                raise ValueError(f"labels are {what}")
            with archive.open("data.npy") as opened:
                shape, columns, dtype = read_header(opened, archive.getinfo("data.npy").file_size)
                wanted = (len(labels), 3 * SIZE * SIZE)
                if shape != wanted or dtype != np.uint8 or columns:
                    raise ValueError(f"data is {dtype} {shape}, not uint8 {wanted}")
                for start in range(0, len(labels), _ROWS):
                    part = labels[start : start + _ROWS]
                    content = opened.read(len(part) * wanted[1])
                    planes = np.frombuffer(content, np.uint8).reshape(len(part), 3, SIZE, SIZE)
                    yield from zip(planes.transpose(0, 2, 3, 1), (part - 1).tolist(), strict=True)


@contextlib.contextmanager
def _opened(path: Path, member: str | None) -> Iterator[Binary]:
    """A batch file; one in a zip is gone through some six times, since every seek starts anew."""
    if member is None:
        with path.open("rb") as file:
            yield file
    else:
        with opened_zip(path) as archive, archive.open(member) as file:
            yield file
