"""Large distilled sets: forward passes in chunks, backward passes through part of the inputs.

The inputs of a distilled set meet only in a few numbers each, its features and outputs. What comes
after those needs all of them; what comes before can be done chunk by chunk, and its derivative
image by image.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._backend import IMAGES_AT_ONCE, IMAGES_HELD
from ._checks import check_counts
from ._sharding import batch_parts
from ._types import PyTree

T = TypeVar("T")


def in_chunks(
    function: Callable[[Float[Array, "n *shape"]], T], inputs: Float[Array, "n *shape"]
) -> T:
    """function(inputs) for a function that treats inputs apart, with memory for one chunk.

    Up to `IMAGES_HELD` inputs it is called as it is. Beyond, chunk by chunk, and its derivatives
    repeat each chunk's forward pass instead of keeping its activations.
    """
    n, parts = len(inputs), batch_parts()
    if n <= IMAGES_HELD:
        return function(inputs)
    repeated = jax.checkpoint(lambda chunk: function(chunk))  # a bound method has no hash
    # A chunk has as many inputs from each part of a batch: these are on different devices, and so
    # no image moves.
    parts = parts if n % parts == 0 else 1
    rows, size = n // parts, max(1, IMAGES_HELD // parts)
    whole, row = rows - rows % size, inputs.shape[1:]
    apart = inputs.reshape(parts, rows, *row)
    chunks = apart[:, :whole].reshape(parts, -1, size, *row).swapaxes(0, 1)
    done = jax.lax.map(repeated, chunks.reshape(-1, parts * size, *row))

    def by_part(x: Array) -> Array:
        x = x.reshape(-1, parts, size, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(parts, whole, *x.shape[3:])

    done = jax.tree.map(by_part, done)
    if whole < rows:
        rest = repeated(apart[:, whole:].reshape(-1, *row))
        rest = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rest)
        done = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), done, rest)
    return jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), done)


def partial_vjp(
    function: Callable[[Float[Array, "n *shape"]], PyTree],
    inputs: Float[Array, "n *shape"],
    chosen: Int[Array, " m"] | None = None,
    *,
    held: int | None = None,
) -> tuple[PyTree, Callable[[PyTree], Float[Array, "n *shape"]]]:
    """function(inputs), and the transpose of its derivative through the chosen inputs alone.

    The forward pass takes all inputs. With m of n inputs chosen uniformly at random, without
    replacement, the transpose is multiplied by n/m and is an unbiased estimate of the whole one:
    every image's gradient is right with probability m/n, and zero else (paper, section 3.6 and
    appendix A; the factor is left to the learning rate there).

    **Arguments:**

    - `function`: treats inputs apart; its outputs have one row per input.
    - `chosen`: indices, or `None` for all.
    - `held`: up to so many inputs, `IMAGES_HELD` if `None`, all activations are kept. Beyond, and
      for chosen ones, the transpose goes through `IMAGES_AT_ONCE` at a time and repeats their
      forward pass.
    """
    n = len(inputs)
    if chosen is None and n <= (IMAGES_HELD if held is None else held):
        outputs, transpose = jax.vjp(function, inputs)
        return outputs, lambda cotangents: transpose(cotangents)[0]

    def one(row: tuple[Array, PyTree]) -> Array:
        image, cotangent = row
        _, transpose = jax.vjp(lambda x: function(x[None]), image)
        return transpose(jax.tree.map(lambda c: c[None], cotangent))[0]

    def transpose(cotangents: PyTree) -> Array:
        if chosen is None:
            return jax.lax.map(one, (inputs, cotangents), batch_size=IMAGES_AT_ONCE)
        rows = jax.tree.map(lambda x: x[chosen], (inputs, cotangents))
        gradients = jax.lax.map(one, rows, batch_size=IMAGES_AT_ONCE)
        return jnp.zeros_like(inputs).at[chosen].set(n / len(chosen) * gradients)

    return in_chunks(function, inputs), transpose


def choose(n: int, subset: int | None, key: PRNGKeyArray) -> Int[Array, " m"] | None:
    """`subset` random ones of n inputs, or `None`, which means all, if there are no more."""
    if subset is None or subset >= n:
        return None
    return jr.choice(key, n, (subset,), replace=False)


def check_subset(subset: int | None) -> None:
    """Raise `ValueError` for an invalid size."""
    if subset is not None:
        check_counts(subset=subset)
