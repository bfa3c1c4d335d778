"""Labels in integers of a few bits, all of them or each image's largest."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import ArgumentError, check_counts
from ._compose import AbstractStage, Extra
from ._levels import check_bits, packed, place, rounded, starting_range, stored_range
from ._read import apply, numbers


class LabelBits(AbstractStage):
    """Labels rounded to evenly spaced levels of one learned range.

    - `bits`: of each label, 1 to 8.
    - `top_k`: how many labels of each image are stored, the largest ones, with their places. All
      others are one number: that which makes the labels of an image sum to zero, as the paper's
      do, or the lowest level if that is less. They are differentiated as if they were stored.
      `None`: all.
    """

    changes: ClassVar[str] = "labels"
    rounds: ClassVar[bool] = True

    bits_each: int
    top_k: int | None

    def __init__(self, bits: int = 8, top_k: int | None = None):
        self.bits_each, self.top_k = check_bits(bits), top_k
        if top_k is not None:
            check_counts(top_k=top_k)

    def forward(self, x):
        if self.top_k is not None and self.top_k > x.shape[1]:
            raise ArgumentError(
                "top_k", f"is {self.top_k}: choose it in 1..{x.shape[1]}, the classes."
            )
        largest = jax.lax.top_k(x, self.top_k or x.shape[1])[0]
        return x, Extra({"range": starting_range(largest, self.bits_each, "set")})

    def backward(self, x, extra):
        span = extra.arrays["range"]
        kept = rounded(x, span, self.bits_each)
        if self.top_k in (None, x.shape[1]):
            return kept
        places = jnp.sort(jax.lax.top_k(x, self.top_k)[1], axis=1)
        largest = jnp.take_along_axis(kept, places, axis=1)
        rest = functools.reduce(jnp.add, largest.T) * (-1 / (x.shape[1] - self.top_k))
        rest = jnp.minimum(rest, span[0])
        others = rest[:, None] + (x - jax.lax.stop_gradient(x))
        return others.at[jnp.arange(len(x))[:, None], places].set(largest)

    def _shape(self, shape):
        return [shape[0], self.top_k or shape[1]]

    def numbers(self, shape, name):
        spec = {"array": "labels", "shape": self._shape(shape), "bits": self.bits_each}
        return spec | {"range": f"{name}.range"}

    def steps(self, shape, extra, name):
        if self.top_k is None:
            return []
        bits = max(1, (shape[1] - 1).bit_length())
        places = {"array": f"{name}.places", "shape": self._shape(shape), "bits": bits}
        return [{"stage": "top", "places": places, "classes": shape[1], "range": f"{name}.range"}]

    def arrays(self, x, extra, name):
        bits, span = self.bits_each, extra.arrays["range"]
        on, stored = place(x, span, bits)[0], {f"{name}.range": stored_range(span)}
        for step in self.steps(x.shape, extra, name):
            places = np.sort(jax.lax.top_k(x, self.top_k or 1)[1], axis=1)
            on = np.take_along_axis(np.asarray(on), places, 1)
            stored[f"{name}.places"] = packed(places, step["places"]["bits"])
        return stored | {"labels": packed(on, bits)}

    def restored(self, arrays, shape, extra, name):
        labels = numbers(arrays, self.numbers(shape, name))
        for step in self.steps(shape, extra, name):
            labels = apply(labels, step, arrays)
        return labels, {"range": arrays[f"{name}.range"]}
