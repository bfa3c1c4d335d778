"""What a method is: a rule for the hypergradient of a distilled set at one network."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from .._coreset import Coreset
from .._losses import label_margin
from ..models import AbstractNetwork

OuterLoss = Callable[[Float[Array, "b classes"], Float[Array, "b classes"], Scalar], Scalar]


class Hypergradient(eqx.Module):
    """The outer loss, its gradient in ψ, and what the solve cost.

    - `value`: the outer loss.
    - `gradient`: shaped like the `Coreset`.
    - `stats`: scalars by name: `accuracy` on the outer batch (a fraction of one) and, for a
      method with an inner problem, `iterations` and `residual`.
    """

    value: Scalar
    gradient: PyTree
    stats: dict[str, Array]


class AbstractMethod(eqx.Module):
    """A strategy for `distill`: how to differentiate the outer loss through the inner problem."""

    @abc.abstractmethod
    def hypergradient(
        self,
        model: AbstractNetwork,
        coreset: Coreset,
        images: Float[Array, "b h w c"],
        targets: Float[Array, "b classes"],
    ) -> Hypergradient:
        """The hypergradient at one network and one outer batch; `targets` are one-hot."""


def accuracy(predictions: Float[Array, "b classes"], targets: Float[Array, "b classes"]) -> Array:
    """The fraction of rows whose largest prediction is their target's."""
    return jnp.mean(jnp.argmax(predictions, -1) == jnp.argmax(targets, -1))


def subtract_margin(result: Hypergradient, coreset: Coreset) -> Hypergradient:
    """The same hypergradient with the label margin subtracted from the outer loss."""
    margin, gradient = jax.value_and_grad(label_margin)(coreset.labels)
    return Hypergradient(
        result.value - margin,
        eqx.tree_at(lambda c: c.labels, result.gradient, replace_fn=lambda g: g - gradient),
        result.stats,
    )


def check_l2_rate(l2_rate: float) -> None:
    """Raise `ValueError` unless the ridge problem has one solution."""
    if not l2_rate > 0:
        raise ValueError(f"l2_rate is {l2_rate}: it must be positive, such as 5e-4.")
