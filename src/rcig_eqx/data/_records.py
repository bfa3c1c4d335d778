"""A labeled set in one ArrayRecord file: written once, then read at random at any size."""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from .._console import track
from ._adapt import as_images
from ._dataset import DataError, Dataset
from ._images import AbstractImages
from ._names import class_names_of, text_of
from ._npy import read_npy
from ._paths import user_path
from ._resize import check_size, resize

FORMAT = "rcig_eqx.records/1"
_CARD, _LABELS, IMAGES = "card.json", "labels.npy", "images.array_record"
_LABEL = "<i4"  # in the byte order of no machine
_DTYPES = ("uint8", "float16", "float32", "float64")
_STALE = 3600  # seconds without a write after which a half-written folder is nobody's
_MARGIN = 2**26  # bytes left free on the disk, and what a file has beyond its images


@dataclasses.dataclass(frozen=True)
class Stream:
    """Labeled images that come one after another, once: all of one shape and dtype."""

    name: str
    class_names: tuple[str, ...]
    count: int | None  # `None` where only the end tells
    items: Iterable[tuple[Shaped[np.ndarray, "h w c"], int]]


class Records(AbstractImages):
    """A folder by [`write_records`][rcig_eqx.data.write_records]: a grain data source.

    `records[i]` is `(image [h w c], label)`, read in one access to the disk, without decoding;
    `.labels` [n], `.class_names`, `.image_shape` and `.dtype` are known at once. The folder has
    `images.array_record`, `labels.npy` and `card.json`; nothing in it is executed.

    Raises `DataError` for a folder that is no such set or is damaged; a record that is damaged is
    noticed when it is read, by its checksum, and `verify()` reads all of them.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = user_path(folder)
        if not (self.folder / _CARD).is_file():
            raise DataError(
                f"{self.folder} holds no records: it has no {_CARD}. Write them with "
                "data.write_records, or data.open_records for a set with a name."
            )
        try:
            card = json.loads((self.folder / _CARD).read_bytes())
            self._take(card)
        except DataError:
            raise
        except Exception as error:  # a damaged card fails in as many ways as it has parts
            raise DataError(
                f"{self.folder} is damaged or of another version ({type(error).__name__}: "
                f"{error}): delete it and write it again."
            ) from error

    def _take(self, card: dict[str, Any]) -> None:
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, where this version reads {FORMAT!r}")
        if card["sha256"] != _sum_of_card(card):
            raise ValueError("the card does not match its checksum")
        self.card = card
        self.name = text_of(card["name"], "name")
        self.class_names = names = class_names_of(card["class_names"])
        height, width, channels = card["image_shape"]
        self.image_shape = (height, width, channels)
        if any(type(n) is not int or n < 1 for n in self.image_shape):
            raise ValueError(f"image shape {self.image_shape}")
        if card["dtype"] not in _DTYPES:
            raise ValueError(f"dtype {card['dtype']!r}")
        self.dtype = np.dtype(card["dtype"])
        with (self.folder / _LABELS).open("rb") as file:
            self.labels = read_npy(file, os.fstat(file.fileno()).st_size)
        if self.labels.dtype.str != _LABEL or self.labels.ndim != 1:
            raise ValueError(f"{_LABELS} is {self.labels.dtype.str} {self.labels.shape}")
        if hashlib.sha256(self.labels.tobytes()).hexdigest() != card["labels_sha256"]:
            raise ValueError(f"{_LABELS} does not match its checksum")
        self.labels = self.labels.astype(np.int32, copy=False)  # in this machine's byte order
        if not len(self.labels) or not 0 <= self.labels.min() <= self.labels.max() < len(names):
            raise ValueError(f"labels are not of {len(names)} classes")
        size = (self.folder / IMAGES).stat().st_size
        if size != card["bytes"]:
            raise ValueError(f"{IMAGES} has {size} bytes where {card['bytes']} were written")
        self._opened = threading.local()
        count = self._reader().num_records()
        if count != len(self.labels):
            raise ValueError(f"{count} images and {len(self.labels)} labels")

    @property
    def marks(self) -> Iterator[str]:
        """The checksum of its images, labels and class names."""
        yield self.card["sha256"]

    def image(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        """Image number `index`."""
        record = self._record(index)
        if len(record) != math.prod(self.image_shape) * self.dtype.itemsize:
            raise DataError(
                f"image {index} of {self.folder} has {len(record)} bytes, not {self.image_shape} "
                f"{self.dtype}: write it again."
            )
        return np.frombuffer(record, self.dtype).reshape(self.image_shape)

    def verify(self, *, progress: bool = True) -> None:
        """Read every image, and raise `DataError` unless all are those that were written."""
        digest = hashlib.sha256()
        numbers = range(len(self))
        for index in track(numbers, "verifying", shown=progress):
            digest.update(self._record(index))
        if digest.hexdigest() != self.card["images_sha256"]:
            raise DataError(f"{self.folder} does not match its checksum: write it again.")

    def _record(self, index: int) -> bytes:
        if not -len(self) <= index < len(self):  # what ends a loop over a sequence
            raise IndexError(f"{index} is not in 0..{len(self) - 1}.")
        try:
            # grain's own source reads a list of positions, which costs some 3 ns for every record
            # of the file: half a millisecond a call at 200,000 of them.
            reader = self._reader()
            reader.seek(index % len(self))
            return reader.read()
        except RuntimeError as error:
            del self._opened.reader  # it stays in its failed state
            raise DataError(
                f"{self.folder / IMAGES} is damaged at image {index} ({error}): write it again."
            ) from error

    def _reader(self) -> Any:
        """This thread's own: a position is not to be shared."""
        if not hasattr(self._opened, "reader"):
            options = "readahead_buffer_size:0,max_parallelism:0"  # for random access
            self._opened.reader = _array_record().ArrayRecordReader(
                str(self.folder / IMAGES), options=options, file_reader_buffer_size=2**15
            )
        return self._opened.reader

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_opened"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _opened=threading.local())


def write_records(
    source: Any, folder: str | os.PathLike[str], *, size: int | None = None, progress: bool = True
) -> Records:
    """Write a labeled set to disk once, as [`Records`][rcig_eqx.data.Records] to stream from.

    **Arguments:**

    - `source`: a `Dataset`, a pair `(images, labels)`, an `ImageFolder` or other set on disk, a
        Hugging Face dataset or a TFDS data source. Read in order, one image at a time.
    - `folder`: where to; it must not exist. It takes h w c bytes per image of uint8.
    - `size`: bring every image to the middle square of so many pixels, as
        `resize` does; of a set on disk that has no one size, give it to
        `ImageFolder` or [`adapt`][rcig_eqx.data.adapt].
    - `progress`: whether to show a bar.

    The folder appears under its name once it is complete: an interrupted call leaves none, a killed
    one a hidden neighbor that the next call an hour later removes. Raises `FileExistsError` if
    something stands there, `DataError` for an image that cannot be read, `OSError` where there is
    no room.
    """
    check_size(size)
    images = as_images(source)
    if isinstance(images, Dataset):
        pixels, items = images.images.dtype, zip(images.images, images.labels.tolist(), strict=True)
    else:
        pixels, items = images.dtype, (images[i] for i in range(len(images)))
    if size is not None and images.image_shape[:2] != (size, size):
        if pixels != np.uint8:
            raise ValueError(f"images are {pixels}: only uint8 images can be brought to a size.")
        items = ((resize(image, size), label) for image, label in items)
    stream = Stream(images.name, images.class_names, len(images), items)
    return write_stream(stream, folder, progress=progress)


def write_stream(
    stream: Stream, folder: str | os.PathLike[str], *, progress: bool = True
) -> Records:
    """`write_records` of what can be read once, from beginning to end."""
    folder = user_path(folder).resolve()
    if folder.exists():
        raise FileExistsError(f"{folder} is there: open it with data.Records, or remove it.")
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        staging = folder.parent / f"{_prefix(folder)}{uuid.uuid4().hex}"
        staging.mkdir()  # by the user's own mask: others may read what it lets them
        _write(stream, staging, progress)
        try:
            staging.rename(folder)
        except OSError:
            if not (folder / _CARD).is_file():  # else another process was first: theirs is whole
                raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(
            error.errno,
            f"could not write the records of {stream.name} to {folder}: {reason}. Nothing is left "
            "there; free some space or choose another place",
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return Records(folder)


def _write(stream: Stream, staging: Path, progress: bool) -> None:
    labels, shape, dtype, digest = [], None, None, hashlib.sha256()
    bar = track(stream.items, "writing", stream.count, shown=progress)
    with _writer(staging / IMAGES) as write:
        for image, label in bar:
            if shape is None:
                shape, dtype = image.shape, image.dtype
                if dtype.name not in _DTYPES:
                    raise ValueError(f"images are {dtype}: pass uint8 or floats.")
                needed, free = (stream.count or 0) * image.nbytes, shutil.disk_usage(staging).free
                if free < needed + _MARGIN:
                    raise OSError(f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free")
            if image.shape != shape or image.dtype != dtype:
                raise DataError(
                    f"image {len(labels)} of {stream.name} is {image.dtype} {image.shape} and the "
                    f"first {dtype} {shape}: give a size to what reads them."
                )
            if not 0 <= label < len(stream.class_names):
                raise DataError(f"image {len(labels)} of {stream.name} has label {label}.")
            record = np.ascontiguousarray(image).tobytes()
            digest.update(record)
            write(record)
            labels.append(label)
    if not labels or stream.count not in (None, len(labels)):
        raise DataError(
            f"{stream.name} ended after {len(labels):,} images, where {stream.count or 1:,} were "
            "expected: what it is read from is incomplete, so get it again."
        )
    assert shape is not None
    numbers = np.asarray(labels, _LABEL)
    np.save(staging / _LABELS, numbers)
    card = {
        "format": FORMAT,
        "name": stream.name,
        "class_names": list(stream.class_names),
        "images": len(labels),
        "image_shape": list(shape),
        "dtype": str(dtype),
        "bytes": (staging / IMAGES).stat().st_size,
        "images_sha256": digest.hexdigest(),
        "labels_sha256": hashlib.sha256(numbers.tobytes()).hexdigest(),
    }
    (staging / _CARD).write_text(json.dumps(card | {"sha256": _sum_of_card(card)}, indent=1))
    for file in staging.iterdir():
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """A function that writes one record; what it cannot write is an `OSError` with the reason."""
    writer = _array_record().ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def write(record: bytes) -> None:
        try:
            writer.write(record)
        except RuntimeError as error:
            raise OSError(str(error)) from error

    try:
        yield write
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        raise
    try:
        writer.close()
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _array_record() -> Any:
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:  # grain brings it along, but on Windows there is none
        raise ImportError("records need array-record, which Windows does not have.") from error


def _prefix(folder: Path) -> str:
    return f".{folder.name}.part-"


def _remove_stale(folder: Path) -> None:
    """Half-written neighbors that no process has written to for long."""
    for part in folder.parent.glob(f"{_prefix(folder)}*"):
        with contextlib.suppress(FileNotFoundError):  # finished or removed by its owner meanwhile
            written = max(place.stat().st_mtime for place in (part, *part.iterdir()))
            if time.time() - written > _STALE:
                shutil.rmtree(part, ignore_errors=True)


def _sum_of_card(card: dict[str, Any]) -> str:
    content = {name: value for name, value in card.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
