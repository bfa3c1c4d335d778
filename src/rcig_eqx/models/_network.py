"""What every network is to the library: a body that makes features, and a linear head."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray


class Head(eqx.Module):
    """The last layer: `features @ kernel + bias`.

    Only the kernel is the head θ_F of the mathematics; the bias counts as a body parameter.
    """

    kernel: Float[Array, "features classes"]
    bias: Float[Array, " classes"]

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        shape = (in_features, num_classes)
        self.kernel = jax.nn.initializers.lecun_normal()(key, shape, dtype)
        self.bias = jnp.zeros(num_classes, dtype)

    def __call__(self, features: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """The outputs f = hᵀ θ_F + bias, one row an image."""
        return features @ self.kernel + self.bias[None]


class AbstractNetwork(eqx.Module):
    """A network split into a body and a head.

    Subclass it to distil with a network of your own: give it a `head` and a `features` method.
    The features of an image must not depend on the other images of the batch, and every inexact
    array counts as a parameter.
    """

    head: eqx.AbstractVar[Head]

    @abc.abstractmethod
    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        """The last hidden layer h(x), flattened."""

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """The outputs f(x), one row an image."""
        check_whole(self)
        return self.head(self.features(images))


def partition(model: AbstractNetwork) -> tuple[AbstractNetwork, AbstractNetwork]:
    """Split a network into `(body, head)`, two pytrees of the network's own structure.

    `head` holds the last layer's kernel θ_F alone, `body` everything else, the head's bias
    included (paper, section 3.3); each has `None` where the other has an array. Put them
    together again with `equinox.combine(body, head)`.
    """
    is_head = jax.tree.map(lambda _: False, model)
    is_head = eqx.tree_at(lambda m: m.head.kernel, is_head, True)
    head, body = eqx.partition(model, is_head)
    return body, head


def check_whole(model: AbstractNetwork) -> None:
    """Raise `ValueError` for one half of a partitioned network."""
    if model.head.kernel is None or model.head.bias is None:  # whatever the annotations promise
        raise ValueError(
            "model is one half of a partitioned network: pass equinox.combine(body, head)."
        )


def count_parameters(model: eqx.Module) -> int:
    """The number of trainable numbers in a network."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
