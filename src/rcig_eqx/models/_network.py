"""What every network is to the library: a body that makes features, and a linear head."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ._normalize import Statistics


def lecun_normal(
    shape: tuple[int, ...], dtype: DTypeLike, *, key: PRNGKeyArray
) -> Float[Array, "..."]:
    """A kernel `[... outputs]` of variance 1 / (inputs of a unit), cut off at two deviations.

    The numbers of `jax.nn.initializers.lecun_normal`, drawn as a vector: XLA takes several times
    as long to compile random bits of more axes on CPU (`benchmarks/start.py`).
    """
    size = math.prod(shape)
    z = jax.random.truncated_normal(key, -2, 2, (size,), dtype).reshape(shape)
    return z * jnp.asarray(math.sqrt(shape[-1] / size) / _CUT_OFF, dtype)


_CUT_OFF = 0.87962566103423978  # standard deviation of a normal that is cut off at ±2
INITIALIZATION = (
    "kernels: normal of standard deviation s, cut off at 2 s, where s is 1 / sqrt(inputs of a "
    "unit) / 0.87962566; biases: 0"
)


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
        self.kernel = lecun_normal((in_features, num_classes), dtype, key=key)
        self.bias = jnp.zeros(num_classes, dtype)

    def __call__(self, features: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """The outputs f = hᵀ θ_F + bias, one row per input."""
        return features @ self.kernel + self.bias[None]


class AbstractNetwork(eqx.Module):
    """A network split into a body and a head.

    Subclass it to distill with a network of your own: give it a `head` and a `features` method.
    The features of an input must not depend on the other inputs of the batch, and every inexact
    array counts as a parameter, but those in [`Statistics`][rcig_eqx.models.Statistics]. One that
    normalizes by batches in training is an
    [`AbstractBatchNetwork`][rcig_eqx.models.AbstractBatchNetwork].
    """

    head: eqx.AbstractVar[Head]

    @property
    def independent(self) -> bool:
        """Whether no input's features depend on another by construction; else it is tried out."""
        return False

    def describe(self) -> dict[str, Any]:
        """What a result records of it beside its name: options of its entry in `NETWORKS`."""
        return {}

    def layout(self) -> dict[str, Any]:
        """What an export says of it, beyond `describe`, to build it without this library."""
        return {}

    @abc.abstractmethod
    def features(self, inputs: Float[Array, "n *shape"], /) -> Float[Array, "n features"]:
        """The last hidden layer h(x), flattened."""

    def __call__(self, inputs: Float[Array, "n *shape"], /) -> Float[Array, "n classes"]:
        """The outputs f(x), one row per input."""
        check_whole(self)
        return self.head(self.features(inputs))


MakeModel = Callable[[PRNGKeyArray], AbstractNetwork]
"""A function from a key to a network."""


class Network(AbstractNetwork):
    """A network out of your own parts: a body that takes one image, and a linear head.

    The body is mapped over a batch, so that no input sees another. Layers that drop out are put in
    inference mode.

    **Arguments:**

    - `body`: any Equinox module, or function, of one input, such as an image `[h w c]`; its output
      is flattened.
    - `head`: an `equinox.nn.Linear` of that output, or a `Head`.
    - `channels_first`: whether the body takes `[c h w]` instead, as `equinox.nn.Conv2d` does.

    Raises `ValueError` for a head that is not linear, and for layers with a state, such as
    `equinox.nn.BatchNorm`.
    """

    body: Callable[[Array], Array]
    head: Head
    channels_first: bool = eqx.field(static=True)

    def __init__(
        self,
        body: Callable[[Array], Array],
        head: "eqx.nn.Linear | Head",
        *,
        channels_first: bool = False,
    ):
        if not callable(body):
            raise ValueError(f"body is a {type(body).__name__}: pass a module of one input.")
        if has_module(body, eqx.nn.StateIndex):
            raise ValueError(
                "body has a layer with a state, which mixes the inputs of a batch: use a "
                "normalization of one input instead, such as equinox.nn.GroupNorm."
            )
        self.body = eqx.nn.inference_mode(body)
        self.head = head_of(head)
        self.channels_first = channels_first

    @property
    def independent(self) -> bool:
        return True

    def features(self, inputs: Float[Array, "n *shape"], /) -> Float[Array, "n features"]:
        if self.channels_first:
            inputs = jnp.moveaxis(inputs, -1, 1)
        features = jax.vmap(self.body)(inputs).reshape(len(inputs), -1)
        wanted = self.head.kernel.shape[0]
        if features.shape[-1] != wanted:
            raise ValueError(
                f"body makes {features.shape[-1]} features of an input {inputs.shape[1:]}, and the "
                f"head takes {wanted}: build the two for each other."
            )
        return features


def has_module(tree: Any, kind: type) -> bool:
    """Whether a pytree has a module of a class in it."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return any(isinstance(leaf, kind) for leaf in leaves)


def head_of(layer: Any) -> Head:
    """The head with a linear layer's numbers; a bias that it lacks starts at zero."""
    if isinstance(layer, Head):
        return layer
    if not isinstance(layer, eqx.nn.Linear) or layer.weight.ndim != 2:
        raise ValueError(
            f"head is a {type(layer).__name__}: the last layer must be an equinox.nn.Linear."
        )
    classes, features = layer.weight.shape
    bias = jnp.zeros(classes, layer.weight.dtype) if layer.bias is None else layer.bias
    blank = Head(features, classes, dtype=layer.weight.dtype, key=jax.random.key(0))
    return eqx.tree_at(lambda h: (h.kernel, h.bias), blank, (layer.weight.T, bias))


def split_network(
    module: Any,
    where: Callable[[Any], eqx.nn.Linear],
    *,
    image_shape: tuple[int, ...],
    channels_first: bool = False,
) -> Network:
    """A whole Equinox module of one input, split before its last layer.

    **Arguments:**

    - `module`: takes one input to its outputs: an image `[h w c]`, `[c h w]` under
      `channels_first`, or whatever else the set holds.
    - `where`: from the module to its last layer, as in `equinox.tree_at`:
      `lambda m: m.layers[-1]`.
    - `image_shape`: of one input: height, width, channels, or whatever shape it has.

    Raises `ValueError` if that layer is not linear, or is not the last thing the module does.
    """
    module, layer = eqx.nn.inference_mode(module), where(module)
    body = eqx.tree_at(where, module, eqx.nn.Identity())
    network = Network(body, layer, channels_first=channels_first)
    shape = (image_shape[-1], *image_shape[:-1]) if channels_first else image_shape
    called: list[tuple[int, ...]] = []

    def outputs_to_outputs(outputs: Array, one: Array) -> Array:
        def stand_in(features: Array, **_: Any) -> Array:
            called.append(features.shape)
            return outputs

        return eqx.tree_at(where, module, stand_in)(one)

    dtype = network.head.kernel.dtype
    traced = jax.make_jaxpr(outputs_to_outputs)(
        jax.ShapeDtypeStruct(network.head.bias.shape, dtype), jax.ShapeDtypeStruct(shape, dtype)
    ).jaxpr
    if called != [network.head.kernel.shape[:1]] or traced.outvars != traced.invars[:1]:
        raise ValueError(
            "The layer at where= is not the last thing the module does to an input: no activation "
            "may follow it, and its outputs must be what the module returns."
        )
    return network


def check_independent(network: AbstractNetwork, one: Float[Array, "*shape"]) -> None:
    """Raise `ValueError` if an input's features depend on the others in its batch."""
    features = eqx.filter_jit(lambda network, inputs: network.features(inputs)[0])
    alone, beside = (features(network, jnp.stack([one, other])) for other in (one, 2 * one + 1))
    if not jnp.allclose(alone, beside, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"{type(network).__name__} makes other features of an input beside another: they "
            "must not depend on the batch. Use a normalization of one input, or stored statistics "
            "as models.AbstractBatchNetwork has them."
        )


def partition(model: AbstractNetwork) -> tuple[AbstractNetwork, AbstractNetwork]:
    """Split a network into `(body, head)`, two pytrees of the network's own structure.

    `head` holds the last layer's kernel θ_F alone, `body` everything else, the head's bias and
    stored statistics included (paper, section 3.3); each has `None` where the other has an array.
    Put them together again with `equinox.combine(body, head)`.
    """
    is_body = eqx.tree_at(lambda m: m.head.kernel, jax.tree.map(lambda _: True, model), False)
    return eqx.partition(model, is_body)


def check_whole(model: AbstractNetwork) -> None:
    """Raise `ValueError` for one half of a partitioned network."""
    if model.head.kernel is None or model.head.bias is None:  # whatever the annotations promise
        raise ValueError(
            "model is one half of a partitioned network: pass equinox.combine(body, head)."
        )


def split_parameters(model: Any) -> tuple[Any, Any]:
    """Split a network, or one half of `partition`, into `(parameters, rest)`.

    The one place that says what is a parameter: every inexact array that is not in a
    [`Statistics`][rcig_eqx.models.Statistics]. Two pytrees of the network's own structure, each
    with `None` where the other has something; `equinox.combine(parameters, rest)` is the network.
    """
    learned = jax.tree.map(eqx.is_inexact_array, model, is_leaf=lambda x: isinstance(x, Statistics))
    return eqx.partition(model, learned)


def count_parameters(model: eqx.Module) -> int:
    """The number of trainable numbers in a network; stored statistics are none."""
    return sum(leaf.size for leaf in jax.tree.leaves(split_parameters(model)[0]))
