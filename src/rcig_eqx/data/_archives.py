"""Files of folders and archives, one after another: nothing is ever extracted to disk."""

import contextlib
import errno
import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from ._dataset import DataError
from ._official import check, opened

A = TypeVar("A")
B = TypeVar("B")
Binary = IO[bytes] | BufferedIOBase
"""An open file of bytes: the library's types name these in two ways."""

_MAX_FILE = 2**25  # bytes; the largest image of these sets has some 15 MB
_MAX_UNPACKED = 2**33  # bytes that a gzipped tar may hold; the largest of these sets has 1.2 GB
_UNSUSPICIOUS = 2**30  # bytes that may come of anything
_MAX_NAME = 2**20  # bytes of a tar's long names and other notes on a member
_BLOCK = 2**16
_ZIP_END = 22  # bytes of the record that ends a zip
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, OSError, NotImplementedError, RuntimeError, ValueError),
)


class Entry:
    """One regular file: its `name` within the folder or archive, `where` it is, and `read()`."""

    def __init__(self, name: str, where: str, size: int, read: Callable[[], bytes]):
        self.name, self.where, self._size, self._read = name, where, size, read

    def read(self, most: int = _MAX_FILE) -> bytes:
        """Its contents; of a tar, only before the next entry is asked for.

        `DataError` for more than `most` bytes.
        """
        if self._size > most:
            raise DataError(
                f"{self.where} has {self._size:,} bytes, where {most:,} are expected at most: "
                "it is not the official file, so get it again."
            )
        with damage_named(self.where):
            return self._read()

    def text(self) -> str:
        """Its contents as UTF-8."""
        with damage_named(self.where):
            return self.read().decode()


def entries(path: Path) -> Iterator[Entry]:
    """Every regular file in a folder, a zip or a tar, gzipped or not.

    Those of folders and zips come sorted by name, those of tars as they lie there: one pass is
    enough. Links and devices are passed over. `DataError` for an archive that is damaged, or has a
    member whose name points outside; of a tar, at the end of the pass at the latest.
    """
    if path.is_dir():
        yield from _of_folder(path)
    elif zipfile.is_zipfile(path):
        check(path)
        yield from _of_zip(path)
    else:
        with damage_named(path), opened(path) as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                file = gzip.GzipFile(fileobj=file, mode="rb")
            yield from _of_tar(file, path)


def tar_names(path: Path) -> list[str]:
    """The names of the members of a tar that is not compressed."""
    with damage_named(path), tarfile.open(path, "r:", tarinfo=_Member) as archive:
        return archive.getnames()


def nested_tar_entries(path: Path) -> Iterator[Entry]:
    """The files of a tar of tars, each named by the tar it lies in: `inner/file`."""
    with damage_named(path), opened(path) as file:
        for member, content in _members(file):
            inner = PurePosixPath(member.name)
            if inner.suffix == ".tar":
                for entry in _of_tar(content, f"{path}:{_safe(member.name, path)}"):
                    entry.name = f"{inner.stem}/{PurePosixPath(entry.name).name}"
                    yield entry


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
        if isinstance(error, OSError) and error.errno not in (None, errno.EIO, errno.EINVAL):
            raise  # no right to read it, too many open files, no memory: nothing is damaged
        raise DataError(
            f"{where} is truncated or damaged ({error}): delete it and get it again."
        ) from error


@contextlib.contextmanager
def opened_zip(file: Path | Binary) -> Iterator[zipfile.ZipFile]:
    """A zip that lists as many members as it says it has, which zipfile does not compare."""
    with zipfile.ZipFile(file) as archive:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
            opened.seek(-_ZIP_END - len(archive.comment), os.SEEK_END)
            end = opened.read(_ZIP_END)
        (count,) = struct.unpack_from("<H", end, 10)
        if end[:4] != b"PK\5\6" or count not in (len(archive.infolist()) % 2**16, 0xFFFF):
            raise zipfile.BadZipFile("it does not list all of its members")
        yield archive


def check_ratio(size: int, packed: int) -> None:
    """Raise `ValueError` for what unpacks to far more than any images do."""
    if size > _UNSUSPICIOUS and size > 100 * packed:
        raise ValueError(f"its {packed:,} bytes would unpack to {size:,}")


def _of_folder(path: Path) -> Iterator[Entry]:
    for folder, inside, files in os.walk(path):
        inside.sort()
        for file in sorted(files):
            place = Path(folder, file)
            name = place.relative_to(path).as_posix()
            yield Entry(name, str(place), place.stat().st_size, place.read_bytes)


def _of_zip(path: Path) -> Iterator[Entry]:
    def read(info: zipfile.ZipInfo) -> bytes:
        with archive.open(info) as file:
            return file.read(info.file_size + 1)  # to its end, where its checksum is compared

    with damage_named(path), opened_zip(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.is_dir():
                name = _safe(info.filename, path)
                yield Entry(name, f"{path}:{name}", info.file_size, partial(read, info))


def _of_tar(file: Binary, where: Path | str) -> Iterator[Entry]:
    for member, content in _members(file):
        name = _safe(member.name, where)
        yield Entry(name, f"{where}:{name}", member.size, content.read)


def _members(file: Binary) -> Iterator[tuple[tarfile.TarInfo, Binary]]:
    """The regular files of a tar in one pass to the very end, where gzip has its checksum."""
    tape: Any = _Tape(file)  # all that a stream needs is `read`
    with tarfile.open(fileobj=tape, mode="r|", bufsize=_BLOCK, tarinfo=_Member) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member, content
        while tape.read(_BLOCK):
            pass
        if tape.used > archive.offset:  # tarfile takes a header that it cannot read for the end
            raise tarfile.ReadError(f"no member begins at byte {archive.offset:,}")


class _Tape:
    """A file read in one pass. `used` is where its last byte other than 0 lies."""

    def __init__(self, file: Binary):
        self._file, self._length, self.used = file, 0, 0
        self._most = _MAX_UNPACKED if isinstance(file, gzip.GzipFile) else None

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        content = len(block.rstrip(b"\0"))
        self.used = self._length + content if content else self.used
        self._length += len(block)
        if self._most is not None and self._length > self._most:
            raise tarfile.ReadError(f"it unpacks to more than {self._most:,} bytes")
        return block


class _Member(tarfile.TarInfo):
    """A member of a tar. Notes on members, such as long names, are read whole: they are bounded."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        notes = member.type not in tarfile.REGULAR_TYPES and not member.isdir()
        if member.size < 0 or (notes and member.size > _MAX_NAME):
            raise tarfile.ReadError(f"a member claims {member.size:,} bytes")
        return member


def _safe(name: str, path: Path | str) -> str:
    """A member's name without a leading `./`, or `DataError`."""
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/") or "\\" in name:
        raise DataError(f"{path} has a member {name!r}, outside of it: not the official archive.")
    return "/".join(parts)
