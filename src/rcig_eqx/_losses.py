"""Inner and outer losses: plain functions, or modules that say more of themselves."""

import abc
from collections.abc import Callable
from typing import TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

InnerLoss = Callable[[Float[Array, "n classes"], Float[Array, "n classes"]], Scalar]
"""`inner_loss(predictions [n classes], labels [n classes])`, a number."""
OuterLoss = Callable[[Float[Array, "b classes"], Float[Array, "b classes"], Scalar], Scalar]
"""`outer_loss(predictions [b classes], targets [b classes], log_temperature)`, a number."""


class SquaredError(eqx.Module):
    """½ Σ w (y − f)², summed over the distilled images and classes: the inner loss of the paper.

    The one inner loss that a linearized network and a ridge head minimize in closed form. A
    function of your own `(predictions [n classes], labels [n classes]) -> scalar` takes the primal
    route instead, whatever it computes. λ/2 ‖θ‖² is added to either.

    `weights` are w, positive: `[n 1]` per image without mirrored ones, `[1 classes]` per class, or
    `[n classes]`. `None`: all 1.
    """

    weights: Float[Array, "rows columns"] | None = eqx.field(
        default=None, converter=lambda w: None if w is None else jnp.asarray(w)
    )

    def __check_init__(self):
        w = self.weights
        if w is None:
            return
        if w.ndim != 2:
            raise ValueError(
                f"weights have shape {w.shape}: pass [n 1], [1 classes] or [n classes], as "
                "weights[:, None] or weights[None]."
            )
        if not isinstance(w, Tracer) and not (np.isfinite(w) & (np.asarray(w) > 0)).all():
            raise ValueError("weights must be positive: leave an image out, or weigh it by 1e-3.")

    def __call__(
        self, predictions: Float[Array, "n classes"], labels: Float[Array, "n classes"]
    ) -> Scalar:
        """The weighted sum of squares, halved."""
        squares = (labels - predictions) ** 2
        return 0.5 * jnp.sum(squares if self.weights is None else self.spread(labels) * squares)

    def spread(self, labels: Float[Array, "n classes"]) -> Float[Array, "n classes"]:
        """The weights in the labels' shape and dtype; `ValueError` if they do not fit."""
        assert self.weights is not None
        rows, columns = self.weights.shape
        if rows not in (1, len(labels)) or columns not in (1, labels.shape[1]):
            raise ValueError(
                f"weights have shape {self.weights.shape}, and there are {len(labels)} distilled "
                f"images of {labels.shape[1]} classes: pass [n 1], [1 classes] or [n classes]."
            )
        return jnp.broadcast_to(self.weights.astype(labels.dtype), labels.shape)


SQUARED_ERROR = SquaredError()


def is_quadratic(inner_loss: InnerLoss) -> TypeGuard[SquaredError]:
    """Whether an inner loss has the closed form, by its type alone: a subclass may not."""
    return type(inner_loss) is SquaredError


def check_quadratic(inner_loss: InnerLoss, what: str) -> SquaredError:
    """The inner loss; `ValueError` if it lacks the closed form that a method is made of."""
    if not is_quadratic(inner_loss):
        name = getattr(inner_loss, "__name__", type(inner_loss).__name__)
        raise ValueError(
            f"inner_loss is {name}, but {what} in closed form, which a SquaredError has alone. "
            "For any other take the primal route with a trained head, "
            "methods.cig(inner_loss=...) or vig, or methods.default_method(steps, "
            "inner_loss=...), which chooses by the type of the loss."
        )
    return inner_loss


class AbstractOuterLoss(eqx.Module):
    """An outer loss that says whether it scales predictions; a plain function does not.

    Subclass it for a loss of your own that multiplies predictions by exp(log τ): only then can the
    labels of the result take the temperature, as `distill(fold=None)` lets them.
    """

    @abc.abstractmethod
    def __call__(
        self,
        predictions: Float[Array, "b classes"],
        targets: Float[Array, "b classes"],
        log_temperature: Scalar,
    ) -> Scalar:
        """The loss, a number."""

    @property
    @abc.abstractmethod
    def scales_predictions(self) -> bool:
        """Whether loss(f, y, s) = loss(f · exp(s), y, 0) for any numbers."""


class PlattLoss(AbstractOuterLoss):
    """Softmax cross-entropy of f · exp(log τ), mean over the batch (paper, section 3.3).

    The paper divides by τ; as in the authors' code the learned number multiplies, which only
    changes the sign of log τ. `targets` are one-hot.
    """

    @property
    def scales_predictions(self) -> bool:
        return True

    def __call__(
        self,
        predictions: Float[Array, "b classes"],
        targets: Float[Array, "b classes"],
        log_temperature: Scalar,
    ) -> Scalar:
        logits = predictions * jnp.exp(log_temperature)
        return jnp.mean(optax.softmax_cross_entropy(logits, targets))


platt_loss = PlattLoss()


def scales_predictions(outer_loss: OuterLoss) -> bool:
    """Whether an outer loss says that it multiplies predictions by exp(log τ)."""
    return isinstance(outer_loss, AbstractOuterLoss) and outer_loss.scales_predictions


def mse_loss(
    predictions: Float[Array, "b classes"],
    targets: Float[Array, "b classes"],
    log_temperature: Scalar,
) -> Scalar:
    """½‖f − (y − 1/C)‖², mean over the batch: FRePo's outer loss (paper, section 3.3).

    The temperature plays no part.
    """
    del log_temperature
    centered = targets - 1 / targets.shape[-1]
    return 0.5 * jnp.mean(jnp.sum((predictions - centered) ** 2, axis=-1))


def label_margin(labels: Float[Array, "n classes"]) -> Scalar:
    """Mean over the distilled points of min(top1 − top2 of a label, 1 / 2C).

    The authors' code subtracts it from the outer loss, so that no learned label loses its
    class; the paper does not mention it.
    """
    top, _ = jax.lax.top_k(labels, 2)
    return jnp.mean(jnp.minimum(top[:, 0] - top[:, 1], 1 / (2 * labels.shape[-1])))
