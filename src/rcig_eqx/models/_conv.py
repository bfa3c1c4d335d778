"""The layers' arithmetic, in the formulation the backend runs fastest."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._backend import conv_formulation


def conv2d(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k l c o"], *, padding: int, stride: int = 1
) -> Float[Array, "n i j o"]:
    """Convolution, zero-padded by `padding` on all four sides.

    **Arguments:**

    - `x`: images or feature maps `[n h w c]`.
    - `kernel`: `[k l c o]`, the order of `lax.conv`'s "HWIO".
    - `padding`: pixels of zeros added on each side.
    - `stride`: pixels from one window to the next, both ways.

    **Returns:** `[n h' w' o]` with `h' = (h + 2 * padding - k) // stride + 1`.
    """
    if conv_formulation() == "lax":
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    k, l, c, o = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    n, i, j = x.shape[0], (x.shape[1] - k) // stride + 1, (x.shape[2] - l) // stride + 1
    rows, columns = (
        [slice(a, a + stride * (m - 1) + 1, stride) for a in range(window)]
        for window, m in ((k, i), (l, j))
    )
    # Two-dimensional operands: XLA then reaches one plain matrix product in every transpose.
    patches = jnp.concatenate([x[:, a, b].reshape(-1, c) for a in rows for b in columns], axis=-1)
    return (patches @ kernel.reshape(-1, o)).reshape(n, i, j, o)


def average_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Mean over 2×2 windows, stride two; an odd last row or column is dropped."""
    return _windows(x).mean((2, 4))


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Largest of 2×2 windows, stride two; an odd last row or column is dropped.

    Where several are largest, the derivative is their mean.
    """
    return _windows(x).max((2, 4))


def _windows(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 2 w2 2 c"]:
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c)


def rectify(x: Float[Array, "..."], beta: float | None) -> Float[Array, "..."]:
    """softplus(βx)/β, or ReLU where β is `None`."""
    return jax.nn.relu(x) if beta is None else softplus(beta * x) / beta


@jax.custom_jvp
def softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + exp x). Differentiated as a sigmoid: half the exponentials of `jax.nn.softplus`."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * dx
