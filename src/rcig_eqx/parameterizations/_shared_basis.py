"""Mixtures of a few learned images."""

import jax.numpy as jnp

from .._checks import ArgumentError, check_counts
from ._compose import AbstractStage, Extra
from ._levels import check_bits, packed, place, rounded, starting_range, stored_range
from ._read import numbers


class SharedBasis(AbstractStage):
    """Inputs are mixtures of a few learned ones, which begin as the start's principal ones.

    - `rank`: how many there are, at most as many as inputs.
    - `bits`: of each number of the basis, 1 to 8, on levels of one range; the weights are
      left to `Quantized`. `None`: float32.
    """

    rank: int
    bits_each: int | None

    def __init__(self, rank: int = 8, bits: int | None = 8):
        check_counts(rank=rank)
        self.rank, self.bits_each = rank, None if bits is None else check_bits(bits)

    def forward(self, x):
        flat = x.reshape(len(x), -1)
        if self.rank > min(flat.shape):
            raise ArgumentError(
                "rank", f"is {self.rank}: choose it in 1..{min(flat.shape)} for {list(x.shape)}."
            )
        u, s, v = jnp.linalg.svd(flat, full_matrices=False)
        size = flat.shape[1] ** 0.5  # so that a number of the basis is of the size of a pixel
        basis = (v[: self.rank] * size).reshape(self.rank, *x.shape[1:])
        arrays = {"basis": basis}
        if self.bits_each:
            arrays["range"] = starting_range(basis, self.bits_each, "set")
        return u[:, : self.rank] * (s[: self.rank] / size)[None], Extra(arrays, x.shape[1:])

    def backward(self, x, extra):
        basis = extra.arrays["basis"]
        if self.bits_each:
            basis = rounded(basis, extra.arrays["range"], self.bits_each)
        flat = jnp.matmul(x, basis.reshape(self.rank, -1), precision="highest")
        return flat.reshape(len(x), *extra.shape)

    def _basis(self, extra, name):
        spec = {"array": f"{name}.basis", "shape": [self.rank, *extra.shape], "bits": 32}
        bits = self.bits_each
        return spec | {"bits": bits, "range": f"{name}.range"} if bits else spec

    def steps(self, shape, extra, name):
        return [{"stage": "basis", "basis": self._basis(extra, name)}]

    def arrays(self, x, extra, name):
        stored, bits = {"images": x, f"{name}.basis": extra.arrays["basis"]}, self.bits_each
        if bits:
            basis, span = (extra.arrays[key] for key in ("basis", "range"))
            stored[f"{name}.basis"] = packed(place(basis, span, bits)[0], bits)
            stored[f"{name}.range"] = stored_range(span)
        return stored

    def restored(self, arrays, shape, extra, name):
        again = {key: arrays[f"{name}.{key}"] for key in extra.arrays}
        return arrays["images"], again | {"basis": numbers(arrays, self._basis(extra, name))}
