"""Fewer pixels, interpolated."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import ArgumentError, check_number
from ._compose import AbstractStage, Extra
from ._read import linear


def check_images(x: Array, stage: AbstractStage) -> None:
    """Raise `ValueError` for what is no image."""
    if x.ndim != 4:
        raise ArgumentError(
            "parameterization",
            f"has {type(stage).__name__}, which is for images [h w c], and each input here is "
            f"{list(x.shape[1:])}: use Quantized, SharedBasis or LabelBits.",
        )


def along_sides(
    x: Float[Array, "n h w c"], rows: np.ndarray, columns: np.ndarray
) -> Float[Array, "n H W c"]:
    """One small matrix times the columns of every image, and one times its rows."""
    matrices = (jnp.asarray(m, x.dtype) for m in (rows, columns))
    return jnp.einsum("nhwc,Hh,Ww->nHWc", x, *matrices, precision="highest")


class Downsampled(AbstractStage):
    """Images of fewer pixels, interpolated linearly to their full size.

    - `factor`: how many times smaller each side is, rounded up to a whole number of pixels.
    """

    factor: float | int = 2

    def __check_init__(self) -> None:
        check_number("factor", self.factor, lambda f: f >= 1, "a number of at least 1")

    def forward(self, x):
        check_images(x, self)
        n, h, w, c = x.shape
        small = (n, math.ceil(h / self.factor), math.ceil(w / self.factor), c)
        return jax.image.resize(x, small, "linear", antialias=True), Extra({}, x.shape[1:])

    def backward(self, x, extra):
        (h, w, _), (_, rows, columns, _) = extra.shape, x.shape
        return along_sides(x, linear(h, rows), linear(w, columns))

    def steps(self, shape, extra, name):
        return [{"stage": "linear", "size": list(extra.shape[:2])}]
