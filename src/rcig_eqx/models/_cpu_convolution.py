"""Convolution for CPU: every derivative of it is again a plain forward convolution.

XLA's CPU compiler has a fast kernel for images laid out as "NHWC" and a kernel as "HWIO". The
transposes that JAX has for `lax.conv` order the dimensions otherwise; XLA puts that right outside
of loops only, and inside they run many times slower (`benchmarks/convolution.py`). So the primitive
here is bilinear like `lax.conv`, and its transposes are written with itself:

- of the images: the output's cotangent with the kernel turned by 180° and its channels exchanged;
- of the kernel: images and cotangent with batch and channels exchanged, so that the cotangent is
  a kernel as large as the images and the sum over the batch one over input channels.

Of float32 and of float64; of meshes whose axes are all `Auto`.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]  # before and after, of rows and of columns


def convolve(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k l c o"], padding: Padding
) -> Float[Array, "n i j o"]:
    """Convolution of stride one; negative padding crops."""
    return _convolve.bind(x, kernel, padding=padding)


def _forward(x, kernel, *, padding, groups=1):
    if groups == 1 and _few_large_windows(x, kernel, padding):
        return _window_by_window(x, kernel, padding)
    if groups == 1 and x.shape[3] <= 4:
        # XLA has a kernel for few channels, faster by half and more, that pads nothing. The barrier
        # keeps the padding out of the convolution, where XLA would put it again.
        odd = (0, int(x.shape[3] == 3), 0)
        nothing, zero = (0, 0, 0), jnp.zeros((), x.dtype)
        x = lax.pad(x, zero, [nothing, *((*edge, 0) for edge in padding), odd])
        kernel = lax.pad(kernel, zero, [nothing, nothing, odd, nothing])
        x, padding = lax.optimization_barrier(x), ((0, 0), (0, 0))
    given = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, **given)


def _few_large_windows(x, kernel, padding) -> bool:
    """Whether windows are larger than the images, where XLA's kernel runs ten times slower.

    Sixteen of them at most, that together have no more than 25 times the images' numbers.
    """
    images, window = x.shape[1:3], kernel.shape[:2]
    if not all(isinstance(size, int) for size in (*images, *window)):
        return False
    count = math.prod(_positions(x, kernel, padding))
    larger = window[0] > images[0] or window[1] > images[1]
    return larger and 0 < count <= 16 and count * math.prod(window) <= 25 * math.prod(images)


def _window_by_window(x, kernel, padding):
    """A matrix product with every window, one after another."""
    (k, l), (i, j) = kernel.shape[:2], _positions(x, kernel, padding)
    nothing, zero = (0, 0, 0), jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [nothing, *((*edge, 0) for edge in padding), nothing])
    at = [(a, b) for a in range(i) for b in range(j)]
    y = jnp.stack([jnp.tensordot(x[:, a : a + k, b : b + l], kernel, 3) for a, b in at], 1)
    return y.reshape(x.shape[0], i, j, kernel.shape[3])


def _positions(x, kernel, padding) -> tuple[int, int]:
    """Rows and columns of the output."""
    sizes = zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)
    i, j = (max(0, m + sum(edges) - q + 1) for m, edges, q in sizes)
    return i, j


def _shape(x, kernel, *, padding):
    shape = (x.shape[0], *_positions(x, kernel, padding), kernel.shape[3])
    return x.update(shape=shape, weak_type=x.weak_type and kernel.weak_type)


def _images_cotangent(dy, x, kernel, *, padding):
    del x
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    (k, l, _, _), ((top, bottom), (left, right)) = kernel.shape, padding
    around = ((k - 1 - top, k - 1 - bottom), (l - 1 - left, l - 1 - right))
    return convolve(dy, turned, around)


def _kernel_cotangent(dy, x, kernel, *, padding):
    del kernel

    def of(x, dy):
        return convolve(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding)

    n, few = x.shape[0], _images_a_piece(dy.shape[1] * dy.shape[2])
    # Of under 13 images a loop gains nothing and takes compiling.
    if not isinstance(n, int) or n < max(2 * few, 13) or _divided():
        return of(x, dy).transpose(1, 2, 0, 3)
    each = min(range(few, 2 * few), key=lambda m: -n % m)  # what fills the last piece best
    rest = ((0, -n % each), *((0, 0),) * 3)
    x, dy = (jnp.pad(a, rest).reshape(-1, each, *a.shape[1:]) for a in (x, dy))
    of_one = jax.eval_shape(of, x[0], dy[0])
    start = jnp.zeros(of_one.shape, jnp.promote_types(of_one.dtype, jnp.float32))
    total, _ = lax.scan(lambda total, piece: (total + of(*piece), None), start, (x, dy))
    return total.astype(of_one.dtype).transpose(1, 2, 0, 3)


def _images_a_piece(pixels: int) -> int:
    """How many images' kernel gradients are taken together, of maps of so many pixels.

    The kernel gradient's sum runs over images and pixels: 200 terms at least, and for four images
    up to 3,200. More leave the cache, fewer let the sum of the pieces be felt.
    """
    pixels = max(1, pixels)
    return max(1, 200 // pixels, min(4, 3200 // pixels))


def _divided() -> bool:
    """Whether a mesh may divide the arrays: a loop over the axis that it divides is not divided."""
    return jax.sharding.get_abstract_mesh().size > 1


def _batched(operands, axes, *, padding):
    x, kernel = operands
    of_x, of_kernel = axes
    if of_kernel is None:  # more images
        x = jnp.moveaxis(x, of_x, 0)
        b, n, *pixels = x.shape
        y = convolve(x.reshape(b * n, *pixels), kernel, padding)
        return y.reshape(b, n, *y.shape[1:]), 0
    if of_x is None and kernel.size > x.size:
        return _exchanged(x, jnp.moveaxis(kernel, of_kernel, 0), padding=padding), 0
    if of_x is None:  # more output channels
        kernel = jnp.moveaxis(kernel, of_kernel, 3)
        *window, b, o = kernel.shape
        y = convolve(x, kernel.reshape(*window, b * o), padding)
        return y.reshape(*y.shape[:3], b, o), 3
    if not _divided():
        pairs = jnp.moveaxis(x, of_x, 0), jnp.moveaxis(kernel, of_kernel, 0)
        return lax.map(lambda pair: convolve(pair[0], pair[1], padding), pairs), 0
    # Groups of channels, which a mesh can divide. Their derivatives are JAX's own: what the library
    # itself maps over several networks is gradients already.
    x, kernel = jnp.moveaxis(x, of_x, 3), jnp.moveaxis(kernel, of_kernel, 3)
    b, c = x.shape[3:]
    x = x.reshape(*x.shape[:3], b * c)
    y = _forward(x, kernel.reshape(*kernel.shape[:3], -1), padding=padding, groups=b)
    return y.reshape(*y.shape[:3], b, -1), 3


def _exchanged(x, kernels, *, padding):
    """Convolution with each of several kernels, as one of them with the images.

    Its result is laid out kernel after kernel. Rows of a Jacobian are kernel gradients, so that
    none of them has to be gathered from strides.
    """
    b, k, l, c, o = kernels.shape
    h, w = x.shape[1:3]
    images = jnp.flip(kernels, (1, 2)).transpose(0, 4, 1, 2, 3).reshape(b * o, k, l, c)
    (top, bottom), (left, right) = padding
    around = (top + h - k, bottom + h - k), (left + w - l, right + w - l)
    y = convolve(images, jnp.flip(x, (1, 2)).transpose(1, 2, 3, 0), around)
    return y.reshape(b, o, *y.shape[1:]).transpose(0, 4, 2, 3, 1)


_convolve = Primitive("convolve")
_convolve.def_impl(jax.jit(_forward, static_argnames=("padding", "groups")))
_convolve.def_abstract_eval(_shape)
ad.defbilinear(_convolve, _images_cotangent, _kernel_cotangent)
batching.primitive_batchers[_convolve] = _batched
mlir.register_lowering(_convolve, mlir.lower_fun(_forward, multiple_results=False))
