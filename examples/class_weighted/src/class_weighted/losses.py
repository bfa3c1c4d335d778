"""What a network trained on the distilled set minimizes, and what the set is distilled for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from rcig_eqx import AbstractOuterLoss

SHARPNESS = 4.0  # learned labels begin at one-hot − 1/C: as logits, that of their class stands out


def cross_entropy(
    predictions: Float[Array, "n classes"], labels: Float[Array, "n classes"]
) -> Scalar:
    """The inner loss: cross-entropy with the learned labels as logits, summed over the images."""
    return jnp.sum(optax.softmax_cross_entropy(predictions, jax.nn.softmax(SHARPNESS * labels)))


class WeightedCrossEntropy(AbstractOuterLoss):
    """The outer loss: the mean cross-entropy on real images, each weighed by its class.

    The weights are an array of the method, so that others compile nothing anew.
    """

    weights: Float[Array, " classes"]

    def __check_init__(self) -> None:
        if not isinstance(self.weights, Tracer) and not (np.asarray(self.weights) > 0).all():
            raise ValueError(f"weights are {self.weights}: make them positive, one a class.")

    @property
    def scales_predictions(self) -> bool:
        """It does, by exp(log τ)."""
        return True

    def __call__(
        self,
        predictions: Float[Array, "b classes"],
        targets: Float[Array, "b classes"],
        log_temperature: Scalar,
    ) -> Scalar:
        """The weighted mean over the batch."""
        weights = targets @ self.weights.astype(targets.dtype)
        losses = optax.softmax_cross_entropy(predictions * jnp.exp(log_temperature), targets)
        return jnp.sum(weights * losses) / jnp.sum(weights)
