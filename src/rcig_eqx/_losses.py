"""Inner and outer losses, as plain functions."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Scalar

from ._types import PyTree


def inner_loss(
    predictions: Float[Array, "n classes"],
    labels: Float[Array, "n classes"],
    displacement: PyTree,
    l2: float | Scalar,
) -> Scalar:
    """½‖y − f‖² + λ/2 ‖θ‖², summed over the distilled points, not averaged (paper, section 3.3).

    `displacement` is θ = (θ_B, θ_F), any pytree of arrays, and `l2` is λ.
    """
    return 0.5 * jnp.sum((labels - predictions) ** 2) + 0.5 * l2 * squared_norm(displacement)


def platt_loss(
    predictions: Float[Array, "b classes"],
    targets: Float[Array, "b classes"],
    log_temperature: Scalar,
) -> Scalar:
    """Softmax cross-entropy of f · exp(log τ), mean over the batch (paper, section 3.3).

    The paper divides by τ; as in the authors' code the learned number multiplies, which only
    changes the sign of log τ. `targets` are one-hot.
    """
    logits = predictions * jnp.exp(log_temperature)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def mse_loss(
    predictions: Float[Array, "b classes"],
    targets: Float[Array, "b classes"],
    log_temperature: Scalar,
) -> Scalar:
    """½‖f − (y − 1/C)‖², mean over the batch: FRePo's outer loss (paper, section 3.3).

    The temperature plays no part.
    """
    del log_temperature
    centred = targets - 1 / targets.shape[-1]
    return 0.5 * jnp.mean(jnp.sum((predictions - centred) ** 2, axis=-1))


def label_margin(labels: Float[Array, "n classes"]) -> Scalar:
    """Mean over the distilled points of min(top1 − top2 of a label, 1 / 2C).

    The authors' code subtracts it from the outer loss, so that no learned label loses its
    class; the paper does not mention it.
    """
    top, _ = jax.lax.top_k(labels, 2)
    return jnp.mean(jnp.minimum(top[:, 0] - top[:, 1], 1 / (2 * labels.shape[-1])))


def squared_norm(tree: PyTree) -> Scalar:
    """The sum of squares of every number in a pytree."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(leaf**2), tree))
