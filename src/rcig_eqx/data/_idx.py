"""IDX, the file format of MNIST and Fashion-MNIST: read whole, gzipped or not, and checked."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ._dataset import DataError

_UNSIGNED_BYTE = 0x08  # the only element type the image sets use
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array an IDX file holds.

    The layout: two zero bytes, the element type, the number of dimensions; each dimension as a
    big-endian 32-bit number; the elements, row after row. `DataError` if anything differs.
    """
    data = _read_bytes(path)
    if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTE]) or data[3] not in range(1, 5):
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes (it begins {data[:4].hex(' ')!r}): "
            "replace it with the official file."
        )
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise DataError(f"{path} ends inside its header: delete it and get it again.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], 4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(
            f"{path} holds {len(data)} bytes but its header (shape {shape}) promises {expected}: "
            "it is truncated or damaged, so delete it and get it again."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def idx_files(split: str) -> tuple[str, str]:
    """The official names, without `.gz`, of a split's image and label files."""
    return f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte"


def read_idx_split(
    folder: Path, split: str
) -> tuple[UInt8[np.ndarray, "n h w 1"], UInt8[np.ndarray, " n"]] | None:
    """Images and labels of a split in `folder`, or `None` unless both files are there."""
    paths = [_either(folder, file) for file in idx_files(split)]
    if paths[0] is None or paths[1] is None:
        return None
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{paths[0]} has shape {images.shape} and {paths[1]} {labels.shape}: not one label "
            "an image, so get both files again from one place."
        )
    return images[..., None], labels


def _either(folder: Path, file: str) -> Path | None:
    return next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":  # gzip's own mark, whatever the file is called
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or damaged ({error}): delete it and get it again."
        ) from error
