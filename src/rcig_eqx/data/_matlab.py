"""MATLAB files, checked as far as their sizes go before anything is made of what they claim."""

import io
import math
import struct
import zlib
from typing import Any

_MOST = 2**26  # bytes unpacked; the class table of ImageNet has a fraction of that
_MATRIX, _PACKED = 14, 15
_CELL, _STRUCT, _PLAIN = 1, 2, (4, *range(6, 16))  # text and numbers
_DEEPEST = 8


def load_mat(content: bytes) -> dict[str, Any]:
    """The variables of a MATLAB 5 file, as `scipy.io.loadmat` gives them with `squeeze_me`.

    Raises `ValueError` for one of another version, or whose parts do not fit into each other: no
    more is ever made than the file has bytes for.
    """
    if content[:10] != b"MATLAB 5.0" or content[124:128] != b"\x00\x01IM":
        raise ValueError("it is not a MATLAB 5 file")
    plain = bytearray(content[:128])
    for kind, part in _parts(content[128:]):
        if kind == _PACKED:
            unpacker = zlib.decompressobj()
            part = unpacker.decompress(part, _MOST - len(plain))
            if not unpacker.eof:
                raise ValueError("a variable is cut off or unpacks to too much")
            plain += part
            ((kind, part),) = _parts(part)
        else:
            plain += struct.pack("<II", kind, len(part)) + part
        if kind != _MATRIX:
            raise ValueError(f"a variable is of type {kind}")
        _check_matrix(part)
    from scipy.io import loadmat  # JAX brings it along

    return loadmat(io.BytesIO(plain), squeeze_me=True)


def _parts(content: bytes) -> list[tuple[int, bytes]]:
    """`(type, contents)` of each element; `ValueError` unless they fill `content`."""
    parts, place = [], 0
    while place < len(content):
        kind, size = struct.unpack_from("<II", content, place)
        if kind >> 16:  # a small one: its size is in the upper half, up to four bytes follow
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            # Compressed variables are not padded to whole eights, all else is.
            end = start + size + (0 if kind == _PACKED else -size % 8)
        if size > end - start or start + size > len(content):
            raise ValueError("an element is longer than what it lies in")
        parts.append((kind, content[start : start + size]))
        place = end
    return parts


def _check_matrix(content: bytes, depth: int = 0) -> None:
    """Raise `ValueError` unless an array has a byte or more for each of its items."""
    if not content:
        return  # how an empty array may be written
    parts = _parts(content)
    (_, flags), (_, lengths), *rest = parts
    kind, shape = flags[0], struct.unpack(f"<{len(lengths) // 4}i", lengths)
    items = math.prod(shape)
    if min(shape) < 0 or items > len(content) or depth > _DEEPEST:
        raise ValueError(f"an array of shape {shape} in {len(content)} bytes, {depth} deep")
    inner = [part for of, part in rest if of == _MATRIX]
    if kind == _STRUCT:
        (_, width), (_, fields) = rest[1:3]
        items *= len(fields) // max(int.from_bytes(width, "little"), 1)
    if kind in (_CELL, _STRUCT):
        if len(inner) != items:
            raise ValueError(f"an array of {items} parts has {len(inner)}")
        for part in inner:
            _check_matrix(part, depth + 1)
    elif kind not in _PLAIN:
        raise ValueError(f"an array is of class {kind}")
