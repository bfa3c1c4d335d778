"""CIFAR-10 and CIFAR-100 in their official forms: binary or pickled, extracted or in an archive."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ._archives import entries
from ._dataset import DataError
from ._official import opened
from ._pickle import read_pickled_dict

_PIXELS = 3 * 32 * 32
_MAX_BATCH = 2**28  # bytes; the training batch of CIFAR-100 has 155 MB

Arrays = tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, " n"]]


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two sets is laid out: the folder and the archive of each official form."""

    binary: str
    binary_archive: str
    python: str
    python_archive: str
    batches: dict[str, tuple[str, ...]]  # of each split, without the `.bin` of the binary form
    label_bytes: int  # before the pixels of a binary record; the last is the label
    label_key: bytes  # in the pickled form

    def read_split(self, folder: Path, split: str) -> Arrays | None:
        """Images and labels of a split in `folder`, or `None` unless all its files are there.

        `folder` may hold an extracted folder or an archive, or be the extracted folder itself.
        """
        python = self.batches[split]
        binary = tuple(f"{name}.bin" for name in python)
        for inner, archive, files, parse in (
            (self.binary, self.binary_archive, binary, self._parse_binary),
            (self.python, self.python_archive, python, self._parse_python),
        ):
            for place in (folder / inner, folder):
                if place.name == inner and all((place / file).is_file() for file in files):
                    return _join({str(place / f): _read(place / f) for f in files}, parse)
            if (folder / archive).is_file():
                return _join(_read_tar(folder / archive, [f"{inner}/{f}" for f in files]), parse)
        return None

    def _parse_binary(self, data: bytes, where: str) -> Arrays:
        record = self.label_bytes + _PIXELS
        if not data or len(data) % record:
            raise DataError(
                f"{where} holds {len(data)} bytes, not a whole number of {record}-byte records: "
                "it is truncated or damaged, so delete it and get it again."
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, record)
        return _planes_to_images(records[:, self.label_bytes :]), records[:, self.label_bytes - 1]

    def _parse_python(self, data: bytes, where: str) -> Arrays:
        batch = read_pickled_dict(data, where)
        pixels, labels = batch.get(b"data"), batch.get(self.label_key)
        if (
            not isinstance(pixels, np.ndarray)
            or not isinstance(labels, list)
            or pixels.shape != (len(labels), _PIXELS)
            or any(type(label) is not int or not 0 <= label < 256 for label in labels)
        ):
            raise DataError(
                f"{where} does not hold `data` [n {_PIXELS}] with n `{self.label_key.decode()}`: "
                "delete it and get the official file."
            )
        return _planes_to_images(pixels), np.array(labels, np.uint8)


def _planes_to_images(planes: UInt8[np.ndarray, "n pixels"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _join(contents: dict[str, bytes], parse: Callable[[bytes, str], Arrays]) -> Arrays:
    images, labels = zip(*(parse(data, where) for where, data in contents.items()), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read(path: Path) -> bytes:
    with opened(path) as file:
        return file.read()


def _read_tar(path: Path, members: list[str]) -> dict[str, bytes]:
    """The named regular files of an archive, read in memory in one pass to its end."""
    contents = {e.name: e.read(_MAX_BATCH) for e in entries(path) if e.name in members}
    missing = [name for name in members if name not in contents]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}: it is truncated or not the official archive, "
            "so delete it and get it again."
        )
    return {f"{path}:{name}": contents[name] for name in members}


CIFAR10 = CifarLayout(
    binary="cifar-10-batches-bin",
    binary_archive="cifar-10-binary.tar.gz",
    python="cifar-10-batches-py",
    python_archive="cifar-10-python.tar.gz",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_bytes=1,
    label_key=b"labels",
)
CIFAR100 = CifarLayout(
    binary="cifar-100-binary",
    binary_archive="cifar-100-binary.tar.gz",
    python="cifar-100-python",
    python_archive="cifar-100-python.tar.gz",
    batches={"train": ("train",), "test": ("test",)},
    label_bytes=2,
    label_key=b"fine_labels",
)
