"""The convolutional network of dataset distillation."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ._conv import average_pool, conv2d, softplus
from ._network import AbstractNetwork, Head, lecun_normal


class ConvBlock(eqx.Module):
    """3×3 convolution, activation, 2×2 average pool."""

    kernel: Float[Array, "3 3 in_channels out_channels"]
    bias: Float[Array, " out_channels"]
    padding: int = eqx.field(static=True)
    softplus: float | None = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding: int,
        softplus: float | None,
        dtype: DTypeLike,
        key: PRNGKeyArray,
    ):
        shape = (3, 3, in_channels, out_channels)
        self.kernel = lecun_normal(shape, dtype, key=key)
        self.bias = jnp.zeros(out_channels, dtype)
        self.padding = padding
        self.softplus = softplus

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 o"]:
        """Half the height and width, `out_channels` channels."""
        x = conv2d(x, self.kernel, padding=self.padding) + self.bias[None, None, None]
        beta = self.softplus
        x = jax.nn.relu(x) if beta is None else softplus(beta * x) / beta
        return average_pool(x)


class ConvNet(AbstractNetwork):
    """`depth` blocks of convolution, activation and pooling, then one linear layer.

    The filters double from block to block: `width`, `2 width`, `4 width`, … (paper, appendix C).
    With one input channel the first convolution pads by 3 instead of 1, so that 28×28 images
    become 32×32. Kernels start LeCun-normal, biases at zero.

    **Arguments:**

    - `in_channels`: 1 or 3 for the usual sets.
    - `image_size`: height and width in pixels, one integer if they are equal.
    - `num_classes`: outputs of the head.
    - `width`: filters of the first block. The paper's is 128.
    - `depth`: number of blocks. The paper takes 3, 4 and 5 for 28–32, 64 and 128 pixels.
    - `normalization`: `None`, the only one so far and the paper's default.
    - `softplus`: the inverse temperature β of softplus(βx)/β, which the paper distils with at
      depth 3 (β = 60); `None` for ReLU, which it evaluates with.
    - `dtype`: of the parameters, whether or not JAX has 64-bit numbers switched on.
    - `key`: source of the random kernels.
    """

    blocks: tuple[ConvBlock, ...]
    head: Head

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int | tuple[int, int],
        num_classes: int,
        width: int = 128,
        depth: int = 3,
        normalization: None = None,
        softplus: float | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        if normalization is not None:
            raise ValueError(f"normalization={normalization!r} is not there yet; pass None.")
        if min(in_channels, num_classes, width, depth) < 1:
            raise ValueError("in_channels, num_classes, width and depth must be at least 1.")
        if softplus is not None and softplus <= 0:
            raise ValueError(f"softplus must be positive, or None for ReLU; got {softplus}.")
        height, width_px = (image_size, image_size) if isinstance(image_size, int) else image_size
        first_padding = 3 if in_channels == 1 else 1
        final = [(side + 2 * first_padding - 2) // 2**depth for side in (height, width_px)]
        if min(final) < 1:
            raise ValueError(
                f"Images of {height}×{width_px} pixels are too small for depth={depth}: every "
                f"block halves them. Use a smaller depth."
            )
        channels = [in_channels, *(width * 2**i for i in range(depth))]
        *block_keys, head_key = jr.split(key, depth + 1)
        self.blocks = tuple(
            ConvBlock(
                channels[i],
                channels[i + 1],
                padding=first_padding if i == 0 else 1,
                softplus=softplus,
                dtype=dtype,
                key=block_keys[i],
            )
            for i in range(depth)
        )
        self.head = Head(final[0] * final[1] * channels[-1], num_classes, dtype=dtype, key=head_key)

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        x = images
        for block in self.blocks:
            x = block(x)
        return x.reshape(x.shape[0], -1)


class convnet_for(eqx.Module):
    """A function from a key to a `ConvNet` that fits a data set: what `model=` takes.

    **Arguments:**

    - `image_shape`: height, width, channels.
    - `num_classes`: outputs.
    - `width`: filters of the first block.
    - `depth`: blocks; `None` is the paper's 3, 4 or 5 for images of up to 32, 64 or more pixels.
    - `softplus`: `"paper"` distils depth 3 with β = 60 and the rest with ReLU (appendix C); a
      number or `None` as in [`ConvNet`][rcig_eqx.ConvNet].
    """

    image_shape: tuple[int, int, int] = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    width: int = eqx.field(static=True, default=128)
    depth: int | None = eqx.field(static=True, default=None)
    softplus: float | Literal["paper"] | None = eqx.field(static=True, default="paper")

    def __call__(self, key: PRNGKeyArray) -> ConvNet:
        """A fresh network."""
        height, width_px, channels = self.image_shape
        depth = self.depth
        if depth is None:
            size = max(height, width_px)
            depth = 3 if size <= 32 else 4 if size <= 64 else 5
        softplus = self.softplus
        if softplus == "paper":
            softplus = 60.0 if depth == 3 else None
        return ConvNet(
            in_channels=channels,
            image_size=(height, width_px),
            num_classes=self.num_classes,
            width=self.width,
            depth=depth,
            softplus=softplus,
            key=key,
        )
