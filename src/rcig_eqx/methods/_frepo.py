"""FRePo: the head alone is trained, in closed form."""

from typing import Any

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Scalar

from .._losses import SQUARED_ERROR, InnerLoss, OuterLoss, check_quadratic, mse_loss
from .._ridge import check_dtype, ridge_head
from .._subsample import in_chunks, partial_vjp
from ..bilevel import Hypergradient
from ._method import (
    AbstractRegularizedMethod,
    accuracy,
    check_shared,
    fields_of,
    support_vjp,
    weights_of,
)


class Frepo(AbstractRegularizedMethod):
    """The gradient through the ridge head, the body frozen: no inner problem (paper, section 3.3).

    One forward pass over the outer batch, and a forward and a transpose pass over the distilled
    set. With the default, `mse_loss`, this is FRePo (Zhou et al., 2022); `outer_loss=platt_loss` is
    the paper's. `dtype` is the precision of the ridge solve and of the products of features around
    it, in full on any device; the features themselves are in its default, such as TF32 on a GPU.
    The rest as in [`Rcig`][rcig_eqx.methods.Rcig].
    """

    l2_rate: float | Scalar = 5e-4
    outer_loss: OuterLoss = mse_loss
    dtype: DTypeLike | None = eqx.field(static=True, default=None)
    subset: int | None = eqx.field(static=True, default=None)
    margin: bool = eqx.field(static=True, default=False)
    inner_loss: InnerLoss = SQUARED_ERROR

    def __check_init__(self) -> None:
        check_shared(self)
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

    def through(self, model, coreset, inputs, targets, /, chosen=None):
        weights = weights_of(self.inner_loss, coreset)
        (X_S, y_S), pull_back = support_vjp(coreset)
        h_T = in_chunks(model.features, inputs)
        h_S, to_inputs = partial_vjp(model.features, X_S, chosen)

        def loss(h_S: Array, y: Array, temperature: Array) -> tuple[Array, Array]:
            l2 = self.l2_rate * len(y)
            f_T = h_T @ ridge_head(h_S, y, l2, weights=weights, dtype=self.dtype)
            return self.outer_loss(f_T, targets, temperature), f_T

        (value, f_T), (h_bar, y_bar, temperature_bar) = jax.value_and_grad(
            loss, argnums=(0, 1, 2), has_aux=True
        )(h_S, y_S, coreset.log_temperature)
        gradient = pull_back(to_inputs(h_bar), y_bar, temperature_bar)
        return Hypergradient(value, gradient, {"accuracy": accuracy(f_T, targets)})


@fields_of(Frepo)
def frepo(**options: Any) -> Frepo:
    """A [`Frepo`][rcig_eqx.methods.Frepo]; `options` are its fields."""
    return Frepo(**options)
