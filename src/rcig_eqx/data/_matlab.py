"""MATLAB 5 files, as far as tables of numbers and text go: nothing is made but of bytes there are.

`scipy.io.loadmat` believes the sizes that a file claims, and damaged ones can end the process.
"""

import math
import struct
import zlib
from typing import Any

import numpy as np

from ._dataset import DataError

_MOST = 2**26  # bytes unpacked; the class table of ImageNet has a fraction of that
_DEEPEST = 8
_MATRIX, _PACKED = 14, 15  # types of elements
_CELL, _STRUCT, _TEXT, _NUMBERS = 1, 2, 4, range(6, 16)  # classes of arrays
_DTYPES = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8",
           12: "<i8", 13: "<u8"}  # fmt: skip
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le",
              18: "utf-32-le"}  # fmt: skip


def read_mat(content: bytes, where: Any) -> dict[str, Any]:
    """The variables by name: text, and lists of numbers, of parts or, for a struct, of mappings.

    Lists are flat, first dimension first. `DataError` names `where` the file is if it is damaged,
    of another version or holds anything else.
    """
    try:
        if content[:10] != b"MATLAB 5.0" or content[124:128] != b"\x00\x01IM":
            raise ValueError("it is no MATLAB 5 file")
        return dict(_array(*part, 0) for part in _unpacked(content[128:]))
    except (ValueError, struct.error, zlib.error, IndexError, KeyError) as error:
        raise DataError(
            f"{where} is damaged ({type(error).__name__}: {error}): get the official file again."
        ) from error


def _unpacked(content: bytes) -> list[tuple[int, bytes]]:
    parts: list[tuple[int, bytes]] = []
    room = _MOST
    for kind, part in _parts(content):
        if kind == _PACKED:
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(part, room)
            room -= len(plain)
            if not unpacker.eof or room < 1:
                raise ValueError("a variable is cut off or unpacks to too much")
            parts += _parts(plain)
        else:
            parts.append((kind, part))
    return parts


def _parts(content: bytes) -> list[tuple[int, bytes]]:
    """`(type, contents)` of each element; `ValueError` unless they fill `content`."""
    parts, place = [], 0
    while place < len(content):
        kind, size = struct.unpack_from("<II", content, place)
        start, room = place + 8, len(content)
        if kind >> 16:  # a small one: its size is in the upper half, four bytes follow
            kind, size, start, room = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        if start + size > min(room, len(content)):
            raise ValueError("an element is longer than what it lies in")
        parts.append((kind, content[start : start + size]))
        # Elements fill whole eights, but for packed ones.
        place = start + size if kind == _PACKED else place + -(-(start + size - place) // 8) * 8
    return parts


def _array(kind: int, content: bytes, depth: int) -> tuple[str, Any]:
    """The name of an array and what is in it."""
    if kind != _MATRIX or depth > _DEEPEST:
        raise ValueError(f"an element of type {kind} lies {depth} deep")
    if not content:
        return "", []  # how an empty array may be written
    (_, flags), (_, lengths), (_, name), *rest = _parts(content)
    of, shape = flags[0], struct.unpack(f"<{len(lengths) // 4}i", lengths)
    if of == _STRUCT:
        (_, width), (_, fields), *rest = rest
        each = int.from_bytes(width, "little")
        names = [fields[i : i + each].rstrip(b"\0").decode() for i in range(0, len(fields), each)]
        values = [_array(*part, depth + 1)[1] for part in rest]
        value: Any = [
            dict(zip(names, values[i : i + len(names)], strict=True))
            for i in range(0, len(values), len(names))
        ]
    elif of == _CELL:
        value = [_array(*part, depth + 1)[1] for part in rest]
    elif of == _TEXT:
        value = rest[0][1].decode(_ENCODINGS[rest[0][0]]) if rest else ""
    elif of in _NUMBERS:
        value = np.frombuffer(rest[0][1], _DTYPES[rest[0][0]]).tolist() if rest else []
    else:
        raise ValueError(f"an array is of class {of}")
    if min(shape) < 0 or len(value) != math.prod(shape):
        raise ValueError(f"an array of shape {shape} has {len(value)} items")
    return name.decode(), value
