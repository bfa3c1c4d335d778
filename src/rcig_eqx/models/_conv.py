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
    if x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"The images have {x.shape[3]} channels and the kernel {tuple(kernel.shape)} takes "
            f"{kernel.shape[2]}: make the network for these images."
        )
    if x.dtype != kernel.dtype:
        raise TypeError(f"The images are {x.dtype}, the kernel is {kernel.dtype}: pass one dtype.")
    edges = ((padding, padding), (padding, padding))
    if conv_formulation() == "lax":
        order = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, edges, dimension_numbers=order)
    from ._cpu_convolution import convolve  # of JAX's less stable parts, which no GPU needs

    if stride == 1:
        return convolve(x, kernel, edges)
    return convolve(*_in_blocks(x, kernel, padding, stride), ((0, 0), (0, 0)))


def _in_blocks(x, kernel, padding, stride):
    """A convolution of stride s as one of stride one: s × s blocks of pixels are the channels."""
    s, (n, h, w, c), (k, l, _, o) = stride, x.shape, kernel.shape
    K, L = -(-k // s), -(-l // s)  # the kernel in blocks, and what it moves over
    H, W = (h + 2 * padding - k) // s + K, (w + 2 * padding - l) // s + L
    edges = [(padding, s * M - m - padding, 0) for M, m in ((H, h), (W, w))]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    kernel = jnp.pad(kernel, ((0, s * K - k), (0, s * L - l), (0, 0), (0, 0)))
    a, b = min(k, s), min(l, s)  # of a block, what a kernel smaller than it sees
    x = x.reshape(n, H, s, W, s, c)[:, :, :a, :, :b].swapaxes(2, 3)
    kernel = kernel.reshape(K, s, L, s, c, o)[:, :a, :, :b].swapaxes(1, 2)
    return x.reshape(n, H, W, a * b * c), kernel.reshape(K, L, a * b * c, o)


def average_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Mean over 2×2 windows, stride two; an odd last row or column is dropped."""
    return _windows(x).mean((2, 4))


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Largest of 2×2 windows, stride two; an odd last row or column is dropped.

    Where several are largest, the first in the order of reading has the derivative. Exactly one is
    chosen however the compiler rounds, which a comparison with the maximum does not see to: of
    inputs that are computed anew, none may be equal to it.
    """
    windows = _windows(x)
    rows = _larger(windows[:, :, :, :, 0], windows[:, :, :, :, 1])
    return _larger(rows[:, :, 0], rows[:, :, 1])


def _larger(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """The larger of two numbers, the first if they are equal; NaN if one is."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _windows(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 2 w2 2 c"]:
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)


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
