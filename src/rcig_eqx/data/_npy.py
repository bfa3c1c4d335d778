"""Arrays in NumPy's own files: plain numbers and text alone, no larger than what they lie in."""

import math
import zipfile
from collections.abc import Collection

import numpy as np

from ._archives import Binary, check_ratio


def read_npy(file: Binary, size: int) -> np.ndarray:
    """The array of an open `.npy` that has `size` bytes, all of which are read.

    Raises `ValueError` for an array of objects and for a header of another size; of a zip's member,
    the checksum is compared.
    """
    shape, _, dtype = read_header(file, size)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: save plain numbers or text")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    assert array.shape == shape, "the header was read twice"
    return array


def read_header(file: Binary, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it lies column by column, and dtype, which make up `size` bytes."""
    version = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in read:
        raise ValueError(f"an array is of version {version}")
    shape, columns, dtype = read[version[0]](file)
    promised = file.tell() + math.prod(shape) * dtype.itemsize
    if promised != size and not dtype.hasobject:
        raise ValueError(f"an array has {size:,} bytes where {dtype} {shape} takes {promised:,}")
    return shape, columns, dtype


def read_npz(archive: zipfile.ZipFile, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that an `.npz` has; `ValueError` and the like if it is damaged.

    Every member is opened, since a name is compared with its other copy only then.
    """
    arrays: dict[str, np.ndarray] = {}
    for info in archive.infolist():
        with archive.open(info) as file:
            name = info.filename.removesuffix(".npy")
            if name in names:
                check_ratio(info.file_size, info.compress_size)
                arrays[name] = read_npy(file, info.file_size)
    return arrays
