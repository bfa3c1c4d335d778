"""What the ready networks are made of: blocks one after another, then a linear head."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._checks import check_counts, check_number
from ._conv import average_pool, conv2d, max_pool, rectify
from ._network import lecun_normal
from ._normalize import Normalize, check_normalization
from ._training import AbstractBatchNetwork

Shape = tuple[int, int, int]  # height, width, channels
Pool = Literal["average", "max"]
_POOLS: dict[str | None, Callable[[Array], Array]] = {
    "average": average_pool,
    "max": max_pool,
    None: lambda x: x,
}


class AbstractBlockNetwork(AbstractBatchNetwork):
    """Blocks one after another; their last map, flattened, is the features."""

    blocks: eqx.AbstractVar[tuple[Any, ...]]
    softplus: eqx.AbstractVar[float | None]

    @property
    def independent(self) -> bool:
        return True

    @classmethod
    def for_shape(
        cls, shape: tuple[int, ...], num_classes: int, *, key: PRNGKeyArray, **options: Any
    ) -> "AbstractBlockNetwork":
        """A network for images [h w c], ReLU in place of the paper's softplus of a convnet."""
        check_is_image(shape, cls.__name__)
        if options.get("softplus") == "paper":
            del options["softplus"]
        check_takes(cls, options)
        options |= {"in_channels": shape[2], "image_size": shape[:2], "num_classes": num_classes}
        make: Any = cls
        return make(key=key, **options)

    def describe(self) -> dict[str, Any]:
        """Its width, normalization and activation in plain values."""
        first, activation = self.blocks[0], activation_text(self.softplus)
        kind = first.normalize.kind if first.normalize else "none"
        width = first.kernel.shape[-1]
        return {"width": width, "normalization": kind, "activation": activation}

    def update(
        self, images: Float[Array, "n h w c"], rate: float | Scalar | None
    ) -> tuple[Float[Array, "n features"], "AbstractBlockNetwork"]:
        x, blocks = images, []
        for block in self.blocks:
            x, block = block.update(x, rate)
            blocks.append(block)
        network = self if rate is None else eqx.tree_at(lambda m: m.blocks, self, tuple(blocks))
        return x.reshape(x.shape[0], -1), network


class ConvBlock(eqx.Module):
    """Convolution of filters of a `size`, normalization if any, activation if any, 2×2 pool if any.

    `padding` and `stride` are those of [`conv2d`][rcig_eqx.models.conv2d], `softplus` the inverse
    temperature of the activation, or `None` for ReLU.
    """

    kernel: Float[Array, "k k in_channels out_channels"]
    bias: Float[Array, " out_channels"] | None
    normalize: Normalize | None
    padding: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    activate: bool = eqx.field(static=True)
    softplus: float | None = eqx.field(static=True)
    pool: str | None = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: int = 3,
        padding: int,
        stride: int = 1,
        bias: bool = True,
        normalize: Normalize | None = None,
        activate: bool = True,
        softplus: float | None,
        pool: Pool | None = "average",
        dtype: DTypeLike,
        key: PRNGKeyArray,
    ):
        shape = (size, size, in_channels, out_channels)
        self.kernel = lecun_normal(shape, dtype, key=key)
        self.bias = jnp.zeros(out_channels, dtype) if bias else None
        self.normalize = normalize
        self.padding, self.stride = padding, stride
        self.activate, self.softplus, self.pool = activate, softplus, pool

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 o"]:
        """The map after the pool, normalized by stored statistics where there are some."""
        return self.update(x, None)[0]

    def update(
        self, x: Float[Array, "n h w c"], rate: float | Scalar | None
    ) -> tuple[Float[Array, "n h2 w2 o"], "ConvBlock"]:
        """The map after the pool, and this block; `rate` as in `Normalize.update`."""
        x = conv2d(x, self.kernel, padding=self.padding, stride=self.stride)
        if self.bias is not None:
            x = x + self.bias[None, None, None]
        block = self
        if self.normalize is not None:
            x, normalize = self.normalize.update(x, rate)
            block = eqx.tree_at(lambda b: b.normalize, self, normalize)
        x = rectify(x, self.softplus) if self.activate else x
        return _POOLS[self.pool](x), block


def conv_block(
    shape: Shape,
    filters: int,
    *,
    size: int = 3,
    padding: int = 1,
    stride: int = 1,
    normalization: str | None,
    pool: Pool | None = None,
    dtype: DTypeLike,
    **options: Any,
) -> tuple[ConvBlock, Shape]:
    """A `ConvBlock` for maps of a shape, and the shape that it makes of them.

    Raises `ValueError` if nothing would be left of them.
    """
    height, width = ((side + 2 * padding - size) // stride + 1 for side in shape[:2])
    pooled = (height // 2, width // 2) if pool else (height, width)
    if min(pooled) < 1:
        raise ValueError(
            "The images are too small for this network, whose pools and strides halve them until "
            "nothing is left: use larger ones, or a convnet of a smaller depth."
        )
    kind = check_normalization(normalization)
    normalize = None if kind == "none" else Normalize(kind, (height, width, filters), dtype=dtype)
    options |= {"size": size, "padding": padding, "stride": stride, "pool": pool, "dtype": dtype}
    return ConvBlock(shape[2], filters, normalize=normalize, **options), (*pooled, filters)


def check_is_image(shape: tuple[int, ...], name: str) -> None:
    """Raise `ValueError` for inputs that a network of images cannot take."""
    if len(shape) != 3:
        raise ValueError(
            f"{name} takes images [h w c], and each input is {list(shape)}: pass another network "
            "as model=, such as models.network_for('mlp', …)."
        )


def check_takes(network: type, options: Iterable[str]) -> None:
    """Raise `ValueError` for an option that a network has not."""
    for name in set(options) - inspect.signature(network).parameters.keys():
        raise ValueError(f"{name} is no option of {network.__name__}: leave it out.")


def activation_text(softplus: float | None) -> str:
    """An activation in words, from its inverse temperature."""
    return "relu" if softplus is None else f"softplus({softplus} x) / {softplus}"


def check_options(softplus: float | None, **sizes: int) -> None:
    """Raise `ValueError` for a size below one, or an invalid activation."""
    check_counts(**sizes)
    check_number("softplus", softplus, lambda b: b is None or b > 0, "positive, or None for ReLU")


def pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size
