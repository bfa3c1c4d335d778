"""Convolution for CPU: every derivative of it is again a plain forward convolution.

XLA's CPU compiler hands a convolution to its fast kernel if the operands are laid out as "NHWC" and
"HWIO" with no dilation. JAX's transposes of `lax.conv` are not, and inside a loop run a hundred
times slower (`benchmarks/convolution.py`). So the primitive here is bilinear like `lax.conv`, and
its transposes are written with itself:

- of the images: the output's cotangent with the kernel turned by 180° and its channels exchanged;
- of the kernel: images and cotangent with batch and channels exchanged, so that the cotangent is
  a kernel as large as the images and the sum over the batch one over input channels.
"""

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
    if groups == 1 and x.shape[3] <= 4:
        # XLA has a kernel for few channels, faster by half and more, if nothing is left to pad.
        odd = (0, int(x.shape[3] == 3), 0)
        nothing, zero = (0, 0, 0), jnp.zeros((), x.dtype)
        x = lax.pad(x, zero, [nothing, *((*edge, 0) for edge in padding), odd])
        kernel = lax.pad(kernel, zero, [nothing, nothing, odd, nothing])
        x, padding = lax.optimization_barrier(x), ((0, 0), (0, 0))
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _shape(x, kernel, *, padding):
    n, h, w, _ = x.shape
    k, l, _, o = kernel.shape
    i, j = (m + sum(p) - q + 1 for m, p, q in zip((h, w), padding, (k, l), strict=True))
    return x.update(shape=(n, i, j, o))


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

    n, few = len(x), _images_a_piece(dy.shape[1] * dy.shape[2])
    if n < max(2 * few, 13) or _divided():  # under 13 a loop gains nothing and takes compiling
        return of(x, dy).transpose(1, 2, 0, 3)
    each = min(range(few, 2 * few), key=lambda m: -n % m)  # what fills the last piece best
    rest = ((0, -n % each), *((0, 0),) * 3)
    x, dy = (jnp.pad(a, rest).reshape(-1, each, *a.shape[1:]) for a in (x, dy))
    start = jnp.zeros_like(jax.eval_shape(of, x[0], dy[0]))
    total, _ = lax.scan(lambda total, piece: (total + of(*piece), None), start, (x, dy))
    return total.transpose(1, 2, 0, 3)


def _images_a_piece(pixels: int) -> int:
    """How many images' kernel gradients are taken together.

    The kernel's longest sum is over images and pixels, and its operands are copied into blocks;
    some hundreds of terms keep the blocks in cache, and too few leave the sum of pieces to be felt.
    """
    return max(1, 200 // pixels, min(4, 3200 // pixels))


def _divided() -> bool:
    """Whether a mesh divides the arrays: it cannot divide a loop over the axis it divides."""
    return not jax.sharding.get_abstract_mesh().empty


def _batched(operands, axes, *, padding):
    x, kernel = operands
    of_x, of_kernel = axes
    if of_kernel is None:  # more images
        x = jnp.moveaxis(x, of_x, 0)
        y = convolve(x.reshape(-1, *x.shape[2:]), kernel, padding)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if of_x is None:  # more output channels
        kernel = jnp.moveaxis(kernel, of_kernel, 3)
        y = convolve(x, kernel.reshape(*kernel.shape[:3], -1), padding)
        return y.reshape(*y.shape[:3], *kernel.shape[3:]), 3
    if not _divided():
        pairs = jnp.moveaxis(x, of_x, 0), jnp.moveaxis(kernel, of_kernel, 0)
        return lax.map(lambda pair: convolve(pair[0], pair[1], padding), pairs), 0
    x, kernel = jnp.moveaxis(x, of_x, 3), jnp.moveaxis(kernel, of_kernel, 3)
    groups, merged = x.shape[3], (a.reshape(*a.shape[:3], -1) for a in (x, kernel))
    y = _forward(*merged, padding=padding, groups=groups)
    return y.reshape(*y.shape[:3], groups, -1), 3


_convolve = Primitive("convolve")
_convolve.def_impl(_forward)
_convolve.def_abstract_eval(_shape)
ad.defbilinear(_convolve, _images_cotangent, _kernel_cotangent)
batching.primitive_batchers[_convolve] = _batched
mlir.register_lowering(_convolve, mlir.lower_fun(_forward, multiple_results=False))
