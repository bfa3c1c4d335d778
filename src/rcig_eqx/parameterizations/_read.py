"""Images and labels of a distilled set, stored as floats or in integers of a few bits.

`images, labels = load(folder)`; needs NumPy and safetensors alone. Sums are taken term by term in
float32, so that every machine gives the same numbers, bit for bit.
"""

import json
from functools import reduce
from pathlib import Path

import numpy as np


def integers(packed, bits, shape):
    """Unsigned integers of so many bits, the lowest bit first, one after another."""
    count = int(np.prod(shape))
    each = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    whole = (each[:, b].astype(np.uint32) << np.uint32(b) for b in range(bits))
    return reduce(np.add, whole).reshape(shape)


def numbers(arrays, spec):
    """Floats as they are, or evenly spaced levels: the lowest, and the width of them all."""
    stored = arrays[spec["array"]]
    if spec["bits"] == 32:
        return stored
    low, width = arrays[spec["range"]]
    whole = integers(stored, spec["bits"], spec["shape"]).astype(np.float32)
    return whole * (width / np.float32(2 ** spec["bits"] - 1)) + low


def linear(size, stored):
    """Linear interpolation of so many pixels to `size`, pixel centers at halves."""
    place = (np.arange(size) + 0.5) * (stored / size) - 0.5
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(stored)))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def cosine(size, stored):
    """The lowest so many orthonormal cosines (DCT-II) of `size` pixels."""
    angle = np.pi / size * (np.arange(size)[:, None] + 0.5) * np.arange(stored)
    scale = np.where(np.arange(stored) == 0, 1, 2) / size
    return (np.sqrt(scale) * np.cos(angle)).astype(np.float32)


def along(x, axis, matrix):
    """The matrix times every vector along an axis."""
    x = np.moveaxis(x, axis, -1)
    terms = (x[..., k, None] * matrix[:, k] for k in range(matrix.shape[1]))
    return np.moveaxis(reduce(np.add, terms), -1, axis)


def apply(x, step, arrays):
    """One step of decoding."""
    if step["stage"] == "basis":
        basis = numbers(arrays, step["basis"])
        return along(x, 1, basis.reshape(len(basis), -1).T).reshape(len(x), *basis.shape[1:])
    if step["stage"] == "top":
        where = step["places"]
        places = integers(arrays[where["array"]], where["bits"], where["shape"])
        others = max(1, step["classes"] - x.shape[1])
        rest = reduce(np.add, x.T) * np.float32(-1 / others)
        rest = np.minimum(rest, arrays[step["range"]][0])
        made = np.repeat(rest[:, None], step["classes"], axis=1)
        np.put_along_axis(made, places.astype(np.int64), x, 1)
        return made
    for axis, size in enumerate(step["size"], 1):
        x = along(x, axis, {"linear": linear, "cosine": cosine}[step["stage"]](size, x.shape[axis]))
    return x


def decode(arrays, layout):
    """The images and the labels of arrays by name, and of what a card says of them."""
    parts = (layout[name] for name in ("images", "labels"))
    return [
        reduce(lambda x, step: apply(x, step, arrays), p["then"], numbers(arrays, p["numbers"]))
        for p in parts
    ]


def load(folder="."):
    """The images [n h w c], preprocessed, and labels [n classes] of an exported folder."""
    from safetensors.numpy import load_file

    card = json.loads(Path(folder, "card.json").read_text(encoding="utf-8"))
    arrays = load_file(Path(folder, "arrays.safetensors"))
    if "storage" not in card:  # floats as they are
        return [arrays[name] for name in ("images", "labels")]
    return decode(arrays, card["storage"])
