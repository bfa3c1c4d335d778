"""Files of folders and archives, one after another: nothing is ever extracted to disk."""

import contextlib
import errno
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ._dataset import DataError

A = TypeVar("A")
B = TypeVar("B")

_MAX_FILE = 2**28  # bytes; the largest image of these sets has some 15 MB
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, NotImplementedError, RuntimeError, ValueError),
)


class Entry:
    """One regular file: its `name` within the folder or archive, `where` it is, and `read()`."""

    def __init__(self, name: str, where: str, read: Callable[[], bytes]):
        self.name, self.where, self._read = name, where, read

    def read(self) -> bytes:
        """Its contents; of a tar, only before the next entry is asked for."""
        with damage_named(self.where):
            return self._read()

    def text(self) -> str:
        """Its contents as UTF-8."""
        with damage_named(self.where):
            return self._read().decode()


def entries(path: Path) -> Iterator[Entry]:
    """Every regular file in a folder, a zip or a tar, compressed or not.

    Those of folders and zips come sorted by name, those of tars as they lie there: one pass is
    enough. Links and devices are passed over. `DataError` for an archive that is damaged, or has a
    member whose name points outside.
    """
    if path.is_dir():
        yield from _of_folder(path)
    elif zipfile.is_zipfile(path):
        yield from _of_zip(path)
    else:
        with damage_named(path), tarfile.open(path) as archive:
            yield from tar_entries(archive, path)


def tar_entries(archive: tarfile.TarFile, path: Path | str) -> Iterator[Entry]:
    """The regular files of an open tar."""
    for member in archive:
        if member.isreg():
            file = archive.extractfile(member)
            assert file is not None, "a regular file has contents"
            name = _safe(member.name, member.size, path)
            yield Entry(name, f"{path}:{name}", file.read)


def nested_tar_entries(path: Path) -> Iterator[Entry]:
    """The files of a tar of tars, each named by the tar it lies in: `inner/file`."""
    with damage_named(path), tarfile.open(path, "r:") as archive:
        for member in archive:
            inner = PurePosixPath(member.name)
            if member.isreg() and inner.suffix == ".tar":
                where = f"{path}:{_safe(member.name, 0, path)}"
                with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as opened:
                    for entry in tar_entries(opened, where):
                        name = f"{inner.stem}/{PurePosixPath(entry.name).name}"
                        yield Entry(name, entry.where, entry.read)


def ordered(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`map(function, items)` by several threads; few items are held at once, and order is kept."""
    threads = min(os.cpu_count() or 1, 16)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[B]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@contextlib.contextmanager
def damage_named(where: Path | str) -> Iterator[None]:
    """Turn what a damaged archive raises within into a `DataError` that names it."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
            raise  # no right to read it, too many open files, no memory: nothing is damaged
        raise DataError(
            f"{where} is truncated or damaged ({error}): delete it and get it again."
        ) from error


def _of_folder(path: Path) -> Iterator[Entry]:
    for folder, inside, files in os.walk(path):
        inside.sort()
        for file in sorted(files):
            place = Path(folder, file)
            yield Entry(place.relative_to(path).as_posix(), str(place), place.read_bytes)


def _of_zip(path: Path) -> Iterator[Entry]:
    with damage_named(path), zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.is_dir():
                name = _safe(info.filename, info.file_size, path)
                yield Entry(name, f"{path}:{name}", lambda info=info: archive.read(info))


def _safe(name: str, size: int, path: Path | str) -> str:
    """A member's name without a leading `./`, or `DataError`."""
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/") or "\\" in name:
        raise DataError(f"{path} has a member {name!r}, outside of it: not the official archive.")
    if size > _MAX_FILE:
        raise DataError(f"{path} has a member {name!r} of {size} bytes: not the official archive.")
    return "/".join(parts)
