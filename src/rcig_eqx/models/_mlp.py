"""The fully connected network: for tables, embeddings, and anything else that is flattened."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ._blocks import activation_text, check_options, check_takes
from ._conv import rectify
from ._network import INITIALIZATION, AbstractNetwork, Head


class MLP(AbstractNetwork):
    """`depth` hidden layers of `width` units each, then one linear layer.

    Inputs of any shape are flattened. Kernels start LeCun-normal, biases at zero.

    **Arguments:**

    - `in_features`: numbers of one input.
    - `num_classes`: outputs of the head.
    - `width`: units of each hidden layer.
    - `depth`: hidden layers.
    - `softplus`: the inverse temperature β of softplus(βx)/β; `None` for ReLU.
    - `dtype`: of the parameters.
    - `key`: source of the random kernels.

    Raises `ValueError` for a size below one, and an invalid activation.
    """

    hidden: tuple[Head, ...]
    head: Head
    softplus: float | None = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 256,
        depth: int = 2,
        softplus: float | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        sizes = {"in_features": in_features, "num_classes": num_classes}
        check_options(softplus, **sizes, width=width, depth=depth)
        *keys, head_key = jr.split(key, depth + 1)
        widths = [in_features, *[width] * (depth - 1)]
        layers = zip(widths, keys, strict=True)
        self.hidden = tuple(Head(n, width, dtype=dtype, key=k) for n, k in layers)
        self.head = Head(width, num_classes, dtype=dtype, key=head_key)
        self.softplus = softplus

    def features(self, inputs: Float[Array, "n *shape"]) -> Float[Array, "n features"]:
        x = inputs.reshape(len(inputs), -1)
        for layer in self.hidden:
            x = rectify(layer(x), self.softplus)
        return x

    @property
    def independent(self) -> bool:
        return True

    @classmethod
    def for_shape(
        cls, shape: tuple[int, ...], num_classes: int, *, key: PRNGKeyArray, **options: Any
    ) -> "MLP":
        """A network for inputs of any shape; `softplus="paper"` is 60, as of a convnet."""
        if options.get("softplus") == "paper":
            options["softplus"] = 60.0
        if options.get("normalization") == "none":
            del options["normalization"]
        check_takes(cls, options)
        return cls(math.prod(shape), num_classes, key=key, **options)

    def describe(self) -> dict[str, Any]:
        """Its width, depth and activation in plain values."""
        sizes = {"width": self.head.kernel.shape[0], "depth": len(self.hidden)}
        return {**sizes, "activation": activation_text(self.softplus)}

    def layout(self) -> dict[str, Any]:
        blocks = (
            "inputs flattened; depth times: a linear layer of width units with bias; activation"
        )
        head = "one linear layer with bias"
        return {"blocks": blocks, "head": head, "initialization": INITIALIZATION}
