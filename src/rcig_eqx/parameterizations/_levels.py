"""Numbers rounded to evenly spaced levels, differentiated as if they were not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import ArgumentError

_NARROWEST = 1e-6  # of a range, so that nothing is divided by zero

PER = ("set", "channel", "number")


def check_bits(bits: Any) -> int:
    """Raise `ValueError` for no whole number of bits in 1..8."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 1 <= bits <= 8:
        raise ArgumentError("bits", f"is {bits!r}: choose a whole number in 1..8.")
    return int(bits)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def level(u: Array, top: int) -> Array:
    """The nearest of the levels 0..top. The derivative is that of u within half a level of them."""
    return jnp.clip(jnp.round(u), 0, top)


@level.defjvp
def _(top, primals, tangents):
    (u,), (moved,) = primals, tangents
    return level(u, top), jnp.where((u >= -0.5) & (u <= top + 0.5), moved, jnp.zeros_like(moved))


def place(x: Array, span: Float[Array, "2 ..."], bits: int) -> tuple[Array, Array, Array]:
    """The level that each number is on, the lowest level, and the step between two."""
    low, width = (r.reshape((1,) * (x.ndim - r.ndim) + r.shape) for r in span)
    top = 2**bits - 1
    step = jnp.maximum(width, _NARROWEST) / top
    return level((x - low) / step, top), low, step


def rounded(x: Array, span: Float[Array, "2 ..."], bits: int) -> Array:
    """x on the levels of a range: the lowest one, and the width from there to the highest."""
    on, low, step = place(x, span, bits)
    return low + step * on


def starting_range(x: Array, bits: int, per: str) -> Float[Array, "2 ..."]:
    """The levels whose outermost halves end at the smallest and the largest number."""
    if per not in PER:
        raise ArgumentError("per", f"is {per!r}: choose one of {', '.join(PER)}.")
    axes = {"set": None, "channel": tuple(range(x.ndim - 1)), "number": 0}[per]
    low, high = jnp.min(x, axes), jnp.max(x, axes)
    step = (high - low) / 2**bits
    return jnp.stack([low + step / 2, step * (2**bits - 1)])


def stored_range(span: Array) -> np.ndarray:
    """The range as `place` takes it."""
    low, width = np.asarray(span)
    return np.stack([low, np.maximum(width, np.float32(_NARROWEST))])


def packed(whole: Any, bits: int) -> np.ndarray:
    """Unsigned integers as bytes: so many bits each, the lowest first, one after another."""
    whole = np.asarray(whole).astype(np.uint32).reshape(-1, 1)
    each = (whole >> np.arange(bits, dtype=np.uint32)) & np.uint32(1)
    return np.packbits(each.astype(np.uint8), bitorder="little")
