"""ResNet-18, VGG-11 and AlexNet in the forms for small images."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ._blocks import AbstractBlockNetwork, ConvBlock, Shape, check_options, conv_block, pair
from ._conv import rectify
from ._network import Head
from ._normalize import check_normalization

# Filters in widths, size of the filters, whether a pool follows.
_VGG11 = (
    *((1, 3, True), (2, 3, True), (4, 3, False), (4, 3, True)),
    *((8, 3, False), (8, 3, True), (8, 3, False), (8, 3, True)),
)
_ALEXNET = ((1, 5, True), (1.5, 5, True), (2, 3, False), (1.5, 3, False), (1.5, 3, True))


class VGG11(AbstractBlockNetwork):
    """Eight 3×3 convolutions and five 2×2 maximum pools, then one linear layer.

    The form for small images (Zhao and Bilen): one linear layer instead of three, and with one
    input channel the first convolution pads by 3. Images of 32 pixels, gray ones of 28, end as
    one pixel, and smaller ones are refused. Kernels start LeCun-normal, biases at zero, scales at
    one.

    **Arguments:** as in [`ConvNet`][rcig_eqx.models.ConvNet]; `width` is of the first convolution,
    and the last four have eight times as many filters.
    """

    blocks: tuple[ConvBlock, ...]
    head: Head
    softplus: float | None = eqx.field(static=True)

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int | tuple[int, int],
        num_classes: int,
        width: int = 64,
        normalization: str | None = None,
        softplus: float | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        shape = (*pair(image_size), in_channels)
        options = {"normalization": normalization, "softplus": softplus, "dtype": dtype}
        self.blocks, self.head = _row(_VGG11, shape, num_classes, width, options, key)
        self.softplus = softplus


class AlexNet(AbstractBlockNetwork):
    """Five convolutions and three 2×2 maximum pools, then one linear layer.

    The form for small images (Zhao and Bilen): two convolutions of 5×5 and three of 3×3, stride
    one throughout, with `width`, `1.5 width`, `2 width`, `1.5 width` and `1.5 width` filters, and
    one linear layer instead of three. With one input channel the first convolution pads by 4, so
    that 28×28 images become 32×32. Kernels start LeCun-normal, biases at zero. The usual form has
    no normalization. Images have 8 pixels at least.

    **Arguments:** as in [`ConvNet`][rcig_eqx.models.ConvNet]; `width` is of the first convolution,
    an even number.
    """

    blocks: tuple[ConvBlock, ...]
    head: Head
    softplus: float | None = eqx.field(static=True)

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int | tuple[int, int],
        num_classes: int,
        width: int = 128,
        normalization: str | None = None,
        softplus: float | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        if width % 2:
            raise ValueError(f"width is {width}: AlexNet's must be even, as 1.5 of it is needed.")
        shape = (*pair(image_size), in_channels)
        options = {"normalization": normalization, "softplus": softplus, "dtype": dtype}
        self.blocks, self.head = _row(_ALEXNET, shape, num_classes, width, options, key)
        self.softplus = softplus


def _row(
    layers: tuple[tuple[int | float, int, bool], ...],
    shape: tuple[int, int, int],
    num_classes: int,
    width: int,
    options: dict[str, Any],
    key: PRNGKeyArray,
) -> tuple[tuple[ConvBlock, ...], Head]:
    """The blocks of a table, and the head; one channel is padded by two pixels more at first."""
    check_options(options["softplus"], in_channels=shape[2], num_classes=num_classes, width=width)
    *keys, head_key = jr.split(key, len(layers) + 1)
    extra, blocks = (2 if shape[2] == 1 else 0), []
    for (filters, size, pooled), block_key in zip(layers, keys, strict=True):
        options |= {"size": size, "padding": size // 2 + extra, "pool": "max" if pooled else None}
        block, shape = conv_block(shape, int(filters * width), key=block_key, **options)
        extra = 0
        blocks.append(block)
    head = Head(math.prod(shape), num_classes, dtype=options["dtype"], key=head_key)
    return tuple(blocks), head


class ResidualBlock(eqx.Module):
    """Two 3×3 convolutions beside a shortcut, added and activated.

    The shortcut is a 1×1 convolution where the shape changes, and nothing where it does not.
    """

    first: ConvBlock
    second: ConvBlock
    shortcut: ConvBlock | None

    def update(
        self, x: Float[Array, "n h w c"], rate: float | Scalar | None
    ) -> tuple[Float[Array, "n i j o"], "ResidualBlock"]:
        """The map after the activation, and this block; `rate` as in `Normalize.update`."""
        y, first = self.first.update(x, rate)
        y, second = self.second.update(y, rate)
        shortcut = self.shortcut
        if shortcut is not None:
            x, shortcut = shortcut.update(x, rate)
        return rectify(x + y, self.first.softplus), ResidualBlock(first, second, shortcut)


class GlobalMean(eqx.Module):
    """The mean over a map's pixels."""

    def update(
        self, x: Float[Array, "n h w c"], rate: float | Scalar | None
    ) -> tuple[Float[Array, "n 1 1 c"], "GlobalMean"]:
        """The mean, and this block."""
        return x.mean((1, 2), keepdims=True), self


class ResNet18(AbstractBlockNetwork):
    """A 3×3 convolution, eight residual blocks in four stages, a mean, one linear layer.

    The form for small images (Zhao and Bilen): no pool and no stride before the stages, which
    have `width`, `2 width`, `4 width` and `8 width` filters and halve the image from the second
    on. Convolutions have a bias only where no normalization follows. Kernels start LeCun-normal,
    biases at zero, scales at one.

    **Arguments:** as in [`ConvNet`][rcig_eqx.models.ConvNet]; `width` is of the first stage.
    """

    blocks: tuple[ConvBlock | ResidualBlock | GlobalMean, ...]
    head: Head
    softplus: float | None = eqx.field(static=True)

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int | tuple[int, int],
        num_classes: int,
        width: int = 64,
        normalization: str | None = None,
        softplus: float | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        check_options(softplus, in_channels=in_channels, num_classes=num_classes, width=width)
        options: Any = {"normalization": normalization, "softplus": softplus, "dtype": dtype}
        options["bias"] = check_normalization(normalization) == "none"
        keys = iter(jr.split(key, 1 + 8 * 3 + 1))

        def residual(shape: Shape, filters: int, stride: int) -> tuple[ResidualBlock, Shape]:
            first, between = conv_block(shape, filters, stride=stride, key=next(keys), **options)
            last = options | {"activate": False}
            second, after = conv_block(between, filters, key=next(keys), **last)
            last |= {"size": 1, "padding": 0, "stride": stride, "key": next(keys)}
            shortcut = conv_block(shape, filters, **last)[0] if shape != after else None
            return ResidualBlock(first, second, shortcut), after

        shape = (*pair(image_size), in_channels)
        block, shape = conv_block(shape, width, key=next(keys), **options)
        blocks: list = [block]
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                block, shape = residual(shape, width * 2**stage, stride)
                blocks.append(block)
        self.blocks = (*blocks, GlobalMean())
        self.head = Head(shape[2], num_classes, dtype=dtype, key=next(keys))
        self.softplus = softplus
