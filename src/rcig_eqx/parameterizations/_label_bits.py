"""Labels in integers of a few bits, all of them or each image's largest."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import ArgumentError, check_counts
from ._compose import AbstractStage, Extra
from ._levels import check_bits, packed, place, rounded, starting_range, stored_range
from ._read import apply, numbers


class LabelBits(AbstractStage):
    """Labels rounded to evenly spaced levels of one learned range.

    - `bits`: of each label, 1 to 8.
    - `top_k`: how many labels of each image are stored, the largest ones, with their places. All
      others are at the lowest level, and are differentiated as if they were stored. `None`: all.
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
        span = starting_range(x, self.bits_each, "set")
        if self.top_k is not None and self.top_k < x.shape[1]:
            rest = jnp.mean(x, where=~self._top(x))
            span = jnp.stack([rest, jnp.max(x) - rest])
        return x, Extra({"range": span})

    def _top(self, x: Float[Array, "n classes"]) -> Bool[Array, "n classes"]:
        """Whether a label is among the largest of its image."""
        places = jax.lax.top_k(x, self.top_k or x.shape[1])[1]
        return jnp.any(jax.nn.one_hot(places, x.shape[1], dtype=bool), axis=1)

    def backward(self, x, extra):
        span = extra.arrays["range"]
        kept = rounded(x, span, self.bits_each)
        if self.top_k is None:
            return kept
        rest = span[0].reshape(1, 1) + (x - jax.lax.stop_gradient(x))
        return jnp.where(self._top(x), kept, rest)

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
        step = {"stage": "top", "places": places, "classes": shape[1], "range": f"{name}.range"}
        return [step]

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
