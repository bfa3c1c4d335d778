"""FRePo: the head alone is trained, in closed form."""

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._coreset import Coreset
from .._hypergradient import Hypergradient
from .._losses import mse_loss, platt_loss
from .._ridge import ridge_head
from ..models import AbstractNetwork
from ._method import (
    AbstractMethod,
    OuterLoss,
    accuracy,
    check_l2_rate,
    subtract_margin,
)


def head_hypergradient(
    model: AbstractNetwork,
    coreset: Coreset,
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b classes"],
    *,
    l2_rate: float = 5e-4,
    outer_loss: OuterLoss = platt_loss,
    dtype: DTypeLike | None = None,
) -> Hypergradient:
    """The gradient through the ridge head, the body frozen: no inner problem (paper, section 3.3).

    One forward pass over the outer batch, and a forward and a transpose pass over the distilled
    set. With `mse_loss` this is FRePo (Zhou et al., 2022). `dtype` is the precision of the ridge
    solve; the rest as in [`exact_hypergradient`][rcig_eqx.exact_hypergradient].
    """
    h_T = model.features(images)

    def loss(coreset: Coreset) -> tuple[Array, Array]:
        X_S, y_S = coreset.support()
        f_T = h_T @ ridge_head(model.features(X_S), y_S, l2_rate * len(y_S), dtype=dtype)
        return outer_loss(f_T, targets, coreset.log_temperature), f_T

    (value, f_T), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(coreset)
    return Hypergradient(value, gradient, {"accuracy": accuracy(f_T, targets)})


class frepo(AbstractMethod):
    """FRePo: the direct gradient through the ridge head, with its mean-squared outer loss.

    The arguments are those of [`head_hypergradient`][rcig_eqx.head_hypergradient], and `margin`
    as in [`rcig`][rcig_eqx.methods.rcig]. Pass `outer_loss=platt_loss` for the paper's outer loss.
    """

    l2_rate: float = 5e-4
    outer_loss: OuterLoss = mse_loss
    dtype: DTypeLike | None = eqx.field(static=True, default=None)
    margin: bool = False

    def __check_init__(self):
        check_l2_rate(self.l2_rate)

    def hypergradient(self, model, coreset, images, targets):
        result = head_hypergradient(
            model,
            coreset,
            images,
            targets,
            l2_rate=self.l2_rate,
            outer_loss=self.outer_loss,
            dtype=self.dtype,
        )
        return subtract_margin(result, coreset) if self.margin else result
