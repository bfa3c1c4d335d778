"""Networks that normalize by batches: their training forward pass, and their stored statistics."""

import abc
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Scalar

from ._network import AbstractNetwork, check_whole, has_module, split_parameters
from ._normalize import Statistics

Net = TypeVar("Net", bound=AbstractNetwork)


class AbstractBatchNetwork(AbstractNetwork):
    """A network that may have layers which normalize by a batch in training.

    What it stores of batches is in [`Statistics`][rcig_eqx.models.Statistics]. Its features, and so
    all that is linearized, are by what is stored: no input sees another.
    """

    @abc.abstractmethod
    def update(
        self, inputs: Float[Array, "n *shape"], rate: float | Scalar | None, /
    ) -> tuple[Float[Array, "n features"], "AbstractBatchNetwork"]:
        """The features, and this network.

        With a `rate` they are by the batch at hand, and the statistics of the network that is
        returned are moved this far towards it; with `None` by the stored ones.
        """

    def features(self, inputs: Float[Array, "n *shape"], /) -> Float[Array, "n features"]:
        features, _ = self.update(inputs, None)
        return features


def has_statistics(model: AbstractNetwork) -> bool:
    """Whether a network stores statistics of batches."""
    return has_module(model, Statistics)


def training_outputs(
    model: Net, inputs: Float[Array, "n *shape"], *, rate: float | Scalar
) -> tuple[Float[Array, "n classes"], Net]:
    """The outputs as in training, and the network with its statistics moved on.

    A network that stores no statistics gives its outputs, and is returned as it is.

    **Arguments:**

    - `model`: any network.
    - `inputs`: a batch. Batch normalization is by this batch alone.
    - `rate`: how far stored statistics move towards the batch's.
    """
    if not has_statistics(model):
        return model(inputs), model
    assert isinstance(model, AbstractBatchNetwork), "a network with statistics knows to move them"
    check_whole(model)
    features, updated = model.update(inputs, rate)
    return model.head(features), updated  # pyright: ignore[reportReturnType]


def split_for_training(model: AbstractNetwork) -> tuple[Any, Any, Any]:
    """`(parameters, stored, static)`: what is learned, the other arrays, all else.

    Each has the network's structure; put them together again with `equinox.combine`.
    """
    parameters, rest = split_parameters(model)
    stored, static = eqx.partition(rest, eqx.is_array)
    return parameters, stored, static


def training_step(
    loss: Callable[[Any, Any], tuple[Scalar, tuple[Any, Any]]],
    optimizer: optax.GradientTransformation,
    parameters: Any,
    stored: Any,
    opt_state: Any,
) -> tuple[tuple[Any, Any, Any], Any]:
    """`(parameters, stored, opt_state)` one step on, and what else the loss tells.

    `loss(parameters, stored)` gives a number, and what the network stores after it with the rest.
    """
    (_, (stored, told)), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, stored)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(parameters, updates), stored, opt_state), told


def with_statistics(model: Net, inputs: Float[Array, "n *shape"]) -> Net:
    """The network with the statistics of these inputs in the place of those stored.

    One without statistics is returned as it is.
    """
    return training_outputs(model, inputs, rate=1.0)[1] if has_statistics(model) else model


def running_rate(step: Int[Array, ""]) -> Scalar:
    """How far training step number `step` moves the stored statistics: 0.1, the first steps more.

    The mean of all batches so far until they are ten, so that nothing is left of what a fresh
    network has stored.
    """
    return jnp.maximum(0.1, 1.0 / (step.astype(jnp.float32) + 1.0))
