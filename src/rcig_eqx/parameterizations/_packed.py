"""A distilled set as it is stored: arrays, and how they are decoded, whoever wrote them."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._coreset import Coreset
from ._compose import FIELDS, count_bits
from ._read import decode

HOW = (
    "Every part has numbers and steps. Numbers are an array of float32 (bits 32), or unsigned "
    "integers of so many bits, the lowest bit first, packed one after another into bytes. An "
    "integer k stands for low + k * (width / (2^bits - 1)), where the array named by range has "
    "low and width, for all numbers, for each of the last axis, or for each number of an input. "
    "Steps follow in order. linear: linear interpolation to size [h w], pixel centers at halves. "
    "cosine: the numbers are the lowest coefficients of an orthonormal DCT-II of size [h w]. "
    "basis: the numbers of each input are the weights of a sum of the basis. top: the numbers go "
    "to their places among the classes, the others are minus their sum times 1 / how many others "
    "there are, but at most low. All sums are of float32, term by term, the first index first; "
    "read.py does it."
)
_NAME = re.compile(r"(images|labels)(\.\d{1,2}\.[a-z]{1,20})?")
_LARGEST = 2**30  # numbers that are decoded
_GROWTH = 2**12  # times the bytes that they are stored in
_LONGEST = 4096  # pixels of a side
_WORK = 2**36  # products of one step

Expected = dict[str, tuple[str, set[tuple[int, ...]]]]  # of every array: its type, its shapes


@dataclasses.dataclass(frozen=True)
class Packed:
    """The arrays of a set by name, and in plain values how images and labels come of them."""

    arrays: Mapping[str, np.ndarray]
    layout: dict[str, Any]

    @property
    def bits(self) -> int:
        """Those of images, labels, and all that decodes them."""
        return count_bits(self.layout, self.set_arrays)

    @property
    def set_arrays(self) -> dict[str, np.ndarray]:
        """All but log τ."""
        return {name: a for name, a in self.arrays.items() if name != "log_temperature"}

    def decode(self) -> list[np.ndarray]:
        """Images and labels; not finite where the ranges are too wide."""
        with np.errstate(over="ignore", invalid="ignore"):
            return decode(self.arrays, self.layout)

    def folded(self) -> "Packed":
        """The labels times τ, as `fold_temperature` does; the integers stay."""
        scale = np.exp(np.float32(self.arrays["log_temperature"]))
        arrays = {
            name: a * scale if name.startswith("labels") and a.dtype == np.float32 else a
            for name, a in self.set_arrays.items()
        }
        return Packed(arrays | {"log_temperature": np.zeros((), np.float32)}, self.layout)

    def coreset(self, like: Coreset) -> Coreset:
        """The set that this stands for, with the preprocessing of another."""
        images, labels = map(jnp.asarray, self.decode())
        temperature = jnp.asarray(self.arrays["log_temperature"])
        return Coreset(images, labels, temperature, like.preprocess, flip=like.flip)

    def is_of(self, coreset: Coreset) -> bool:
        """Whether it stands for just these images and labels, bit for bit."""
        wanted = [np.asarray(getattr(coreset, name)) for name in (*FIELDS, "log_temperature")]
        made = [*self.decode(), self.arrays["log_temperature"]]
        return all(
            a.shape == b.shape and a.tobytes() == b.tobytes()
            for a, b in zip(made, wanted, strict=True)
        )


def check_layout(layout: Any) -> tuple[Expected, dict[str, tuple[int, ...]]]:
    """What arrays a layout needs, and the shapes of images and labels that it makes of them.

    Raises `ValueError`, `KeyError` or `TypeError` for one that makes none, or takes too long.
    """
    expected: Expected = {}
    shapes = {}
    for field in FIELDS:
        _keys(layout[field], {"numbers", "then"})
        shape = _numbers(layout[field]["numbers"], field, expected)
        if not isinstance(layout[field]["then"], list) or len(layout[field]["then"]) > 8:
            raise ValueError(f"the steps of {field} are no list of up to 8")
        for step in layout[field]["then"]:
            shape = _after(step, shape, field, expected)
        shapes[field] = shape
    return expected, shapes


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Expected) -> None:
    """Raise `ValueError` unless the arrays are those a layout needs, and floats are finite."""
    if arrays.keys() != expected.keys():
        raise ValueError(f"it has arrays {sorted(arrays)}, not {sorted(expected)}")
    for name, array in arrays.items():
        check_array(name, str(array.dtype), array.shape, expected)
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")


def check_array(name: str, dtype: str, shape: tuple[int, ...], expected: Expected) -> None:
    """Raise `ValueError` for an array of another type or shape than a layout needs."""
    if name not in expected or dtype != expected[name][0] or shape not in expected[name][1]:
        raise ValueError(f"{name[:100]} is {dtype} of shape {shape}, or is not expected")


def _keys(part: Any, keys: set[str]) -> None:
    if not isinstance(part, dict) or part.keys() != keys:
        raise ValueError(f"a part of the storage has no {', '.join(sorted(keys))}, or has more")


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"the storage has {str(value)[:40]}, no whole number in {low}..{high}")
    return value


def _new(name: Any, field: str, expected: Expected) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not name.startswith(field):
        raise ValueError(f"{str(name)[:40]!r} is no name of an array of {field}")
    if name in expected:
        raise ValueError(f"{name} is used twice")
    return name


def _numbers(spec: Any, field: str, expected: Expected, *, places: bool = False):
    """The shape of numbers, and their arrays put with those expected."""
    ranged = not places and isinstance(spec, dict) and spec.get("bits") != 32
    _keys(spec, {"array", "shape", "bits"} | ({"range"} if ranged else set()))
    if not isinstance(spec["shape"], list) or not 1 < len(spec["shape"]) < 7:
        raise ValueError("numbers have no shape of 2 to 6 axes")
    shape = tuple(_whole(size, 1, _LARGEST) for size in spec["shape"])
    count = _whole(math.prod(shape), 1, _LARGEST)
    name = _new(spec["array"], field, expected)
    if not places and not ranged:
        expected[name] = "float32", {shape}
        return shape
    bits = _whole(spec["bits"], 1, 24 if places else 8)
    expected[name] = "uint8", {(-(-count * bits // 8),)}
    if ranged:
        of = _new(spec["range"], field, expected)
        expected[of] = "float32", {(2,), (2, shape[-1]), (2, *shape[1:])}
    return shape


def _after(step: Any, shape: tuple[int, ...], field: str, expected: Expected):
    """The shape that a step makes of another."""
    kind = step.get("stage") if isinstance(step, dict) else None
    work = 1
    if kind in ("linear", "cosine"):
        _keys(step, {"stage", "size"})
        n, h, w, c = shape
        size = [_whole(s, 1, _LONGEST) for s in step["size"]]
        made = (n, _whole(size[0], h, _LONGEST), _whole(size[1], w, _LONGEST), c)
        work = len(size) == 2 and max(h, w)
    elif kind == "basis":
        _keys(step, {"stage", "basis"})
        n, work = shape
        rank, *each = _numbers(step["basis"], field, expected)
        made = (n, *each) if rank == work else ()
    elif kind == "top":
        _keys(step, {"stage", "places", "classes", "range"})
        n, count = shape
        made = (n, _whole(step["classes"], count, 2**24))
        expected[step["range"]] = "float32", {(2,)} & expected[step["range"]][1]
        if _numbers(step["places"], field, expected, places=True) != shape:
            raise ValueError("there are other places than numbers")
    else:
        raise ValueError(f"{str(kind)[:40]!r} is no step of decoding")
    stored = sum(max(map(math.prod, shapes)) for _, shapes in expected.values())
    size = math.prod(made)
    if not made or not work or size > min(_LARGEST, _GROWTH * stored) or size * work > _WORK:
        raise ValueError(f"a step makes {made} of {shape}: it does not fit, or takes too long")
    return made
