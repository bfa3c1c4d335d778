"""Arrays out of a pickle that is not trusted: nothing it names is ever imported or run."""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from ._dataset import DataError


class _InertDtype:
    """Stands in for `numpy.dtype`: remembers the type's code and nothing else."""

    code: Any = None

    def __init__(self, code: Any, *_: Any):
        self.code = code

    def __setstate__(self, state: Any):
        """Byte order and the like: of no account for single bytes, the one type accepted."""


class _InertArray:
    """Stands in for `numpy.ndarray`: remembers shape, type and bytes."""

    state: Any = None

    def __setstate__(self, state: Any):
        self.state = state


_STAND_INS = {
    ("numpy", "ndarray"): _InertArray,
    ("numpy", "dtype"): _InertDtype,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _InertArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _InertArray(),
    # Python 3 writes bytes this way under protocol 2: as Latin-1 text to be encoded.
    ("_codecs", "encode"): lambda text, *_: text.encode("latin-1"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise DataError(f"it asks for {module}.{name}, which no image set needs")
        return _STAND_INS[module, name]


def read_pickled_dict(data: bytes, where: str) -> dict[bytes, Any]:
    """The dictionary pickled in `data`, its byte arrays as numpy arrays; `where` names its file.

    Only plain values and uint8 arrays can come out; a pickle that refers to any other class or
    function is refused with `DataError` before anything of it runs, and so is one that claims more
    than it has bytes for.
    """
    try:
        for code, argument, _ in pickletools.genops(data):  # it compares lengths with what is there
            if "PUT" in code.name and int(argument or 0) > len(data):
                raise DataError("it numbers more objects than it can hold")
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise DataError(f"it holds a {type(content).__name__}, not a dictionary")
        return {k: _to_numpy(v) if isinstance(v, _InertArray) else v for k, v in content.items()}
    except Exception as error:  # a damaged pickle can raise anything at all
        raise DataError(
            f"{where} is refused as a pickle of an image set: {error}. "
            "Delete it and get the official file."
        ) from error


def _to_numpy(array: _InertArray) -> np.ndarray:
    _, shape, dtype, fortran_order, data = array.state
    if not isinstance(dtype, _InertDtype) or dtype.code not in ("u1", b"u1"):
        raise DataError("it holds an array of something other than unsigned bytes")
    if not isinstance(data, bytes) or any(type(n) is not int or n < 0 for n in shape):
        raise DataError("it holds an array without a plain shape and contents")
    order = "F" if fortran_order else "C"
    return np.frombuffer(data, np.uint8).reshape(shape, order=order)
