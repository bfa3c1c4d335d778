"""Files that are written whole or not at all, and read with their checksum."""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save as serialize

from ..data import DataError
from ..data._paths import user_path

MAX_FILE = 2**32  # bytes of a file of others that is read
MAX_TEXT = 2**25  # bytes of a header or a card, which 100,000 classes fit in


def write_checked(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Path:
    """Write one safetensors file: arrays, and a header of plain values with their checksum.

    The header says which `format` it is. Raises `ValueError` for one longer than is read, and
    `OSError` as `write_atomically` does.
    """
    path = user_path(path)
    content = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    header = dict(header) | {"sha256": checksum(header, content)}
    file = serialize(content, {"rcig_eqx": json.dumps(header)})
    check_length(header, int.from_bytes(file[:8], "little"), path)
    write_atomically(path, file)
    return path


def check_length(parts: Mapping[str, Any], length: int, path: Path) -> None:
    """Raise `ValueError` for a header or card that would be refused when it is read."""
    if length > MAX_TEXT:
        longest = max(parts, key=lambda name: len(json.dumps(parts[name])))
        raise ValueError(
            f"{path} would describe itself in {length:,} bytes, most of them its {longest}, and at "
            f"most {MAX_TEXT:,} are read: shorten that."
        )


def read_checked(
    path: str | os.PathLike[str], expected: str | tuple[str, ...], kind: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file by `write_checked`. Nothing in it is executed.

    Raises `FileNotFoundError`, or `DataError` for a file that is damaged, truncated, or of
    another format than those `expected`; `kind` is what to call it there.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    with damage_named(path, kind):
        check_header(path)
        with safetensors.safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})["rcig_eqx"])
            known = expected if isinstance(expected, tuple) else (expected,)
            if (format := header["format"]) not in known:
                reads = " and ".join(map(repr, known))
                raise ValueError(f"format {format!r}, where this version reads {reads}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.pop("sha256") != checksum(header, arrays):
            raise ValueError("its contents do not match its checksum")
        return header, arrays


@contextlib.contextmanager
def damage_named(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn whatever a bad file makes happen within into a `DataError` that names it."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # hostile files fail in as many ways as they have parts
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # no right to read it, or no memory: nothing is damaged
        what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is damaged or no {kind}: {what}.") from error


def checksum(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of everything a file says."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, which is never held whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_header(path: Path) -> None:
    """Raise `ValueError` for a safetensors file whose header claims to be longer than ours are."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_TEXT:
        raise ValueError(f"its header claims {length} bytes, where at most {MAX_TEXT} are read")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or none: to a neighbor first, then renamed over `path`."""
    temporary = path.with_name(part_of(path.name, uuid.uuid4().hex))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        size = len(content) / 1e6
        raise OSError(
            error.errno,
            f"could not write {path} ({size:.1f} MB): {error.strerror}. What stood there before, "
            "if anything, is untouched; free some space or choose another place",
        ) from error


def under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays with `prefix.` before their names."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def within(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Those arrays whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def part_of(name: str, mark: str) -> str:
    """What the neighbor of a file is called. No two threads, processes or hosts share a mark."""
    return f".{name[:40]}.{mark}.part"


def sweep(folder: Path, *names: str) -> None:
    """Remove what killed writers left of files of these names, in a folder that is held."""
    for name in names:
        for part in folder.glob(part_of(name, "*")):
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
