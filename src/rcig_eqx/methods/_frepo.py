"""FRePo: the head alone is trained, in closed form."""

from typing import Any

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Scalar

from .._checks import check_flags
from .._coreset import Coreset
from .._losses import SQUARED_ERROR, InnerLoss, check_quadratic, mse_loss, platt_loss
from .._ridge import check_dtype, ridge_head
from .._subsample import check_subset, choose, in_chunks, partial_vjp
from ..bilevel import Hypergradient
from ..models import AbstractNetwork
from ._method import (
    AbstractRegularizedMethod,
    OuterLoss,
    accuracy,
    check_l2_rate,
    subtract_margin,
    support_vjp,
    weights_of,
)


def head_hypergradient(
    model: AbstractNetwork,
    coreset: Coreset,
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b classes"],
    *,
    l2_rate: float | Scalar = 5e-4,
    inner_loss: InnerLoss = SQUARED_ERROR,
    outer_loss: OuterLoss = platt_loss,
    dtype: DTypeLike | None = None,
    chosen: Int[Array, " m"] | None = None,
) -> Hypergradient:
    """The gradient through the ridge head, the body frozen: no inner problem (paper, section 3.3).

    One forward pass over the outer batch, and a forward and a transpose pass over the distilled
    set. With `mse_loss` this is FRePo (Zhou et al., 2022). `dtype` is the precision of the ridge
    solve and of the products of features around it, in full on any device; the features themselves
    are in its default, such as TF32 on a GPU. The rest as in
    [`exact_hypergradient`][rcig_eqx.exact_hypergradient].
    """
    check_quadratic(inner_loss, "head_hypergradient solves for the head")
    weights = weights_of(inner_loss, coreset)
    (X_S, y_S), pull_back = support_vjp(coreset)
    h_T = in_chunks(model.features, images)
    h_S, to_images = partial_vjp(model.features, X_S, chosen)

    def loss(h_S: Array, y: Array, temperature: Array) -> tuple[Array, Array]:
        f_T = h_T @ ridge_head(h_S, y, l2_rate * len(y), weights=weights, dtype=dtype)
        return outer_loss(f_T, targets, temperature), f_T

    (value, f_T), (h_bar, y_bar, temperature_bar) = jax.value_and_grad(
        loss, argnums=(0, 1, 2), has_aux=True
    )(h_S, y_S, coreset.log_temperature)
    gradient = pull_back(to_images(h_bar), y_bar, temperature_bar)
    return Hypergradient(value, gradient, {"accuracy": accuracy(f_T, targets)})


class Frepo(AbstractRegularizedMethod):
    """FRePo: the direct gradient through the ridge head, with its mean-squared outer loss.

    The arguments are those of [`head_hypergradient`][rcig_eqx.head_hypergradient], and `subset`
    and `margin` as in [`Rcig`][rcig_eqx.methods.Rcig]. Pass `outer_loss=platt_loss` for the
    paper's outer loss.
    """

    l2_rate: float | Scalar = 5e-4
    outer_loss: OuterLoss = mse_loss
    dtype: DTypeLike | None = eqx.field(static=True, default=None)
    subset: int | None = eqx.field(static=True, default=None)
    margin: bool = eqx.field(static=True, default=False)
    inner_loss: InnerLoss = SQUARED_ERROR

    def __check_init__(self) -> None:
        check_l2_rate(self.l2_rate)
        check_subset(self.subset)
        check_flags(margin=self.margin)
        check_quadratic(self.inner_loss, "frepo solves for the head")

    @property
    def linear_in_labels(self) -> bool:
        return True

    @property
    def head_l2_rate(self) -> float | Scalar:
        return self.l2_rate

    def check(self, coreset, batch_size):
        check_dtype(self.dtype)
        AbstractRegularizedMethod.check(self, coreset, batch_size)

    def hypergradient(self, model, coreset, images, targets, *, key):
        result = head_hypergradient(
            model,
            coreset,
            images,
            targets,
            l2_rate=self.l2_rate,
            inner_loss=self.inner_loss,
            outer_loss=self.outer_loss,
            dtype=self.dtype,
            chosen=choose(len(coreset.support()[1]), self.subset, key),
        )
        return subtract_margin(result, coreset) if self.margin else result


def frepo(**options: Any) -> Frepo:
    """A [`Frepo`][rcig_eqx.methods.Frepo]; `options` are its fields."""
    return Frepo(**options)
