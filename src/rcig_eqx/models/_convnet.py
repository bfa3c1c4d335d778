"""The convolutional network of dataset distillation."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from ._blocks import (
    AbstractBlockNetwork,
    ConvBlock,
    check_is_image,
    check_options,
    conv_block,
    pair,
)
from ._network import INITIALIZATION, Head


class ConvNet(AbstractBlockNetwork):
    """`depth` blocks of convolution, activation and pooling, then one linear layer.

    The filters double from block to block: `width`, `2 width`, `4 width`, … (paper, appendix C);
    with `growth=1` they stay `width`, which with `normalization="instance"` is the other common
    form (Zhao and Bilen). With one input channel the first convolution pads by 3 instead of 1, so
    that 28×28 images become 32×32. Kernels start LeCun-normal, biases at zero.

    **Arguments:**

    - `in_channels`: 1 or 3 for the usual sets.
    - `image_size`: height and width in pixels, one integer if they are equal.
    - `num_classes`: outputs of the head.
    - `width`: filters of the first block. The paper's is 128.
    - `depth`: number of blocks. The paper takes 3, 4 and 5 for 28–32, 64 and 128 pixels.
    - `normalization`: `"batch"`, `"instance"`, `"layer"` or `"group"`, between convolution and
      activation, as `Normalize` has them; `"none"` or `None`, the
      paper's default, for none.
    - `softplus`: the inverse temperature β of softplus(βx)/β, which the paper distills with at
      depth 3 (β = 60); `None` for ReLU, which it evaluates with.
    - `growth`: how many times as many filters each block has as the one before.
    - `dtype`: of the parameters, whether or not JAX has 64-bit numbers switched on.
    - `key`: source of the random kernels.
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
        depth: int = 3,
        normalization: str | None = None,
        softplus: float | None = None,
        growth: int = 2,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        sizes = {"in_channels": in_channels, "num_classes": num_classes}
        check_options(softplus, **sizes, width=width, depth=depth, growth=growth)
        height, width_px = pair(image_size)
        first_padding = 3 if in_channels == 1 else 1
        if min((side + 2 * first_padding - 2) // 2**depth for side in (height, width_px)) < 1:
            raise ValueError(
                f"Images of {height}×{width_px} pixels are too small for depth={depth}: every "
                "block halves them. Use a smaller depth."
            )
        *block_keys, head_key = jr.split(key, depth + 1)
        shape, blocks = (height, width_px, in_channels), []
        given: Any = {"normalization": normalization, "softplus": softplus, "dtype": dtype}
        for i, block_key in enumerate(block_keys):
            given |= {"padding": 1 if i else first_padding, "key": block_key}
            block, shape = conv_block(shape, width * growth**i, pool="average", **given)
            blocks.append(block)
        self.blocks = tuple(blocks)
        self.head = Head(math.prod(shape), num_classes, dtype=dtype, key=head_key)
        self.softplus = softplus

    @classmethod
    def for_shape(
        cls, shape: tuple[int, ...], num_classes: int, *, key: PRNGKeyArray, **options: Any
    ) -> "ConvNet":
        """A network for images [h w c], as `convnet_for` makes it; ReLU without `softplus`."""
        check_is_image(shape, "ConvNet")
        size = max(shape[:2])
        depth = options.setdefault("depth", 3 if size <= 32 else 4 if size <= 64 else 5)
        if options.get("softplus") == "paper":
            options["softplus"] = 60.0 if depth == 3 else None
        sizes: Any = {"in_channels": shape[2], "image_size": shape[:2]}
        return cls(**sizes, num_classes=num_classes, key=key, **options)

    def describe(self) -> dict[str, Any]:
        """Its width, depth, growth if it is not 2, normalization and activation in plain values."""
        widths = [block.kernel.shape[-1] for block in self.blocks[:2]]
        grown = len(widths) == 2 and widths[1] != 2 * widths[0]
        growth = {"growth": widths[1] // widths[0]} if grown else {}
        rest = super().describe()
        return {"width": rest.pop("width"), "depth": len(self.blocks), **growth, **rest}

    def layout(self) -> dict[str, Any]:
        normalized = self.blocks[0].normalize is not None
        growth = self.describe().get("growth", 2)
        return {
            "padding": [block.padding for block in self.blocks],
            "blocks": f"convolution 3x3 of width * {growth}^i filters with bias, stride 1, "
            f"zero-padded by padding[i]; {'normalization; ' if normalized else ''}activation; mean "
            "over 2x2, stride 2, an odd last row or column dropped",
            "head": "features flattened in the order h, w, c; one linear layer with bias",
            "initialization": INITIALIZATION,
        }
