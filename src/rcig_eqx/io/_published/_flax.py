"""RCIG: a checkpoint of Flax, which is msgpack with arrays as its extension type 1."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ._layout import AbstractLayout, StoredSet, needed, part

_DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint8")
_MOST = {
    "max_array_len": 2**10,
    "max_map_len": 2**16,
}  # entries, claimed before they come


class RCIG(AbstractLayout):
    """RCIG: `x_proto` `[n h w c]` and `y_proto` of the averaged set, `ema_average`; of `params`
    where there is no average, as in checkpoints of FRePo."""

    names = r".*\.msgpack|checkpoint_\d+"
    mirrored = True

    def read(self, path: Path) -> list[StoredSet]:
        tree = _unpack(path.read_bytes())
        which = "ema_average" if isinstance(tree, dict) and tree.get("ema_average") else "params"
        return [StoredSet(*(_array(part(tree, which, f"{x}_proto")) for x in ("x", "y")))]


def _unpack(content: bytes) -> Any:
    msgpack = needed("msgpack", "rcig-eqx[published]")
    return msgpack.unpackb(content, raw=False, strict_map_key=False, **_MOST)


def _array(value: Any) -> Any:
    """An array out of an extension, or out of chunks. `ValueError` for anything else."""
    if isinstance(value, dict):
        chunks = [_array(chunk) for chunk in _in_order(part(value, "chunks"))]
        return _shaped(np.concatenate(chunks), _in_order(part(value, "shape")))
    if getattr(value, "code", None) != 1:
        raise ValueError("something else stands where an array is expected")
    shape, dtype, content = _unpack(value.data)
    if dtype not in _DTYPES:
        raise ValueError(f"an array has the dtype {str(dtype)[:20]!r}")
    return _shaped(np.frombuffer(content, dtype), shape)


def _shaped(numbers: np.ndarray, shape: list[Any]) -> np.ndarray:
    if any(type(side) is not int or side < 1 for side in shape) or math.prod(shape) != numbers.size:
        raise ValueError(f"{numbers.size} numbers are said to be an array {str(shape)[:100]}")
    return numbers.reshape(shape)


def _in_order(tree: dict[str, Any]) -> list[Any]:
    return [part(tree, str(number)) for number in range(len(tree))]
