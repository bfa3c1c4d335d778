"""IDX, the file format of MNIST and Fashion-MNIST: read whole, gzipped or not, and checked."""

import gzip
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ._archives import check_ratio, damage_named
from ._dataset import DataError
from ._official import opened

_UNSIGNED_BYTE = 0x08  # the only element type the image sets use
_DIMENSIONS = (b"\1", b"\2", b"\3", b"\4")
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array an IDX file holds.

    The layout: two zero bytes, the element type, the number of dimensions; each dimension as a
    big-endian 32-bit number; the elements, row after row. `DataError` if anything differs.
    """
    with damage_named(path), opened(path, path.name.replace(".idx", "-idx")) as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"  # gzip's own mark, whatever the file is called
        file = gzip.GzipFile(fileobj=raw, mode="rb") if packed else raw
        start = file.read(4)
        if start[:3] != bytes([0, 0, _UNSIGNED_BYTE]) or start[3:] not in _DIMENSIONS:
            raise DataError(
                f"{path} is not an IDX file of unsigned bytes (it begins {start.hex(' ')!r}): "
                "replace it with the official file."
            )
        header, size = 4 + 4 * start[3], path.stat().st_size
        lengths = file.read(header - 4)
        if len(lengths) != header - 4:
            raise DataError(f"{path} ends inside its header: delete it and get it again.")
        shape = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
        wanted = math.prod(shape)
        if packed:
            check_ratio(wanted, size)
        # One byte too many is asked for: so the end is reached, where gzip has its checksum.
        data = file.read((wanted if packed else min(wanted, size)) + 1)
        if len(data) != wanted:
            some = "at least " if len(data) > wanted else ""
            raise DataError(
                f"{path} holds {some}{header + len(data)} bytes but its header (shape {shape}) "
                f"promises {header + wanted}: it is truncated or damaged, so delete it and get it "
                "again."
            )
    return np.frombuffer(data, np.uint8).reshape(shape)


def idx_downloads(split: str) -> tuple[str, str]:
    """The official names of a split's image and label files."""
    return f"{_PREFIX[split]}-images-idx3-ubyte.gz", f"{_PREFIX[split]}-labels-idx1-ubyte.gz"


def read_idx_split(
    folder: Path, split: str
) -> tuple[UInt8[np.ndarray, "n h w 1"], UInt8[np.ndarray, " n"]] | None:
    """Images and labels of a split in `folder`, or `None` unless both files are there."""
    paths = [_either(folder, file.removesuffix(".gz")) for file in idx_downloads(split)]
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
    """The file under the name it has, or that 7-Zip and Kaggle give it, which may be a folder's."""
    names = (file, file.replace("-idx", ".idx"))
    places = [(folder / name, folder / f"{name}.gz", folder / name / name) for name in names]
    return next((place for some in places for place in some if place.is_file()), None)
