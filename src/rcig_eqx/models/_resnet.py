"""ResNet-18 in the form for small images."""

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
    on. Convolutions have a bias only where no normalisation follows. Kernels start LeCun-normal,
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
