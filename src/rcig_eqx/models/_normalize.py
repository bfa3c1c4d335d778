"""Normalization layers, and what batch normalization stores."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from .._checks import check_known

NORMALIZATIONS = ("none", "batch", "instance", "layer", "group")
_GROUPS = 4
_EPSILON = 1e-5


class Statistics(eqx.Module):
    """Mean and variance of a layer's inputs, as seen in training: stored, not learned.

    Arrays in a `Statistics` are the only inexact ones of a network that are no parameters.
    """

    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]


class Normalize(eqx.Module):
    """(x − mean) / √(variance + 1e-5) · scale + shift.

    Mean and variance are over

    - `"batch"`: the images of a batch and their pixels, channel by channel, in training; those
      stored in `statistics` otherwise, so that no image sees another;
    - `"instance"`: the pixels of one image, channel by channel;
    - `"layer"`: all of one image;
    - `"group"`: one image, each of four groups of channels.

    One scale and shift per channel, for `"layer"` per channel and pixel; they start at one and
    zero. The variance is the mean of squares, here and in what is stored. Kinds and groups are
    those of Zhao and Bilen's networks.

    **Arguments:**

    - `kind`: one of the four.
    - `shape`: height, width and channels of the inputs.

    Raises `ValueError` for an unknown kind, and for a shape that it cannot normalize.
    """

    scale: Float[Array, "..."]
    shift: Float[Array, "..."]
    statistics: Statistics | None
    kind: str = eqx.field(static=True)

    def __init__(self, kind: str, shape: tuple[int, int, int], *, dtype: DTypeLike = jnp.float32):
        height, width, channels = shape
        if check_normalization(kind) == "none":
            raise ValueError('kind is "none": leave the layer out.')
        if kind == "instance" and height * width == 1:
            raise ValueError(
                "A map of one pixel has no variance of its own, so that instance normalization "
                "leaves nothing of it: use larger images or another normalization."
            )
        if kind == "group" and channels % _GROUPS:
            raise ValueError(
                f"{channels} channels do not make {_GROUPS} groups: choose a width that is a "
                f"multiple of {_GROUPS}."
            )
        learned = shape if kind == "layer" else (channels,)
        self.scale, self.shift = jnp.ones(learned, dtype), jnp.zeros(learned, dtype)
        self.statistics, self.kind = None, kind
        if kind == "batch":
            self.statistics = Statistics(jnp.zeros(channels, dtype), jnp.ones(channels, dtype))

    def update(
        self, x: Float[Array, "n h w c"], rate: float | Scalar | None
    ) -> tuple[Float[Array, "n h w c"], "Normalize"]:
        """The normalized inputs, and this layer.

        With a `rate`, `"batch"` normalizes by the batch at hand, and moves what the layer that is
        returned has stored this far towards it: 1 is all the way.
        """
        if self.statistics is None:
            groups = {"instance": x.shape[-1], "layer": 1, "group": _GROUPS}[self.kind]
            grouped = x.reshape(*x.shape[:3], groups, -1)
            mean, variance = _moments(grouped, (1, 2, 4))
            x = ((grouped - mean) * jax.lax.rsqrt(variance + _EPSILON)).reshape(x.shape)
            return x * _as_map(self.scale) + _as_map(self.shift), self
        stored, layer = self.statistics, self
        if rate is not None:
            seen = Statistics(*(moment.ravel() for moment in _moments(x, (0, 1, 2))))
            rate = jnp.asarray(rate, x.dtype)
            moved = jax.tree.map(lambda a, b: a + rate * (b - a), stored, seen)
            layer = eqx.tree_at(lambda n: n.statistics, self, jax.lax.stop_gradient(moved))
            stored = seen
        slope = self.scale * jax.lax.rsqrt(stored.variance + _EPSILON)
        return (x - _as_map(stored.mean)) * _as_map(slope) + _as_map(self.shift), layer


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    mean = jnp.mean(x, axes, keepdims=True)
    return mean, jnp.mean((x - mean) ** 2, axes, keepdims=True)


def _as_map(x: Array) -> Array:
    """With the axes that it lacks to n h w c."""
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def check_normalization(kind: str | None) -> str:
    """The kind's name, `"none"` for `None`. `ValueError` for an unknown one, with the nearest."""
    kind = "none" if kind is None else kind
    check_known("normalization", kind, NORMALIZATIONS)
    return kind
