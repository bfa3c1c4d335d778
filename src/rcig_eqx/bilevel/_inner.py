"""Inner losses, and the curvature that each has at a point."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Scalar

from .._trees import squared_norm
from .._types import PyTree
from ..operators import (
    DualizableOperator,
    LeastSquaresKernel,
    gauss_newton_operator,
    hessian_operator,
)
from ._parameters import as_arrays

# A scalar function of (inner_params, outer_params, *args); an outer one may return (loss, aux).
Loss = Callable[..., Any]


class AbstractInnerLoss(eqx.Module):
    """An inner loss that knows its curvature; that of a plain function is its Hessian."""

    @abc.abstractmethod
    def __call__(self, inner_params: PyTree, outer_params: PyTree, *args: Any) -> Scalar:
        """The inner loss."""

    @abc.abstractmethod
    def curvature(
        self, at: "InnerMinimum", theta: PyTree, damping: float | Scalar
    ) -> lx.AbstractLinearOperator:
        """What the adjoint is solved with, damping added: symmetric, in θ's structure."""

    @property
    def knows_dual(self) -> bool:
        """Whether `curvature` is a `DualizableOperator`."""
        return False


class InnerMinimum(eqx.Module):
    """An inner loss at a point θ, as a function of its differentiated half alone."""

    inner_loss: AbstractInnerLoss
    frozen: PyTree
    outer_params: PyTree
    args: tuple[Any, ...]

    def call(self, function: Callable[..., Any], theta: PyTree) -> Any:
        """A function of `(inner_params, outer_params, *args)` as one of θ."""
        # Equinox's State may be used once: every call gets a copy.
        args = jax.tree.map(lambda x: x, self.args)
        return function(eqx.combine(theta, self.frozen), self.outer_params, *args)

    def loss(self, theta: PyTree) -> Any:
        """The inner loss."""
        return self.call(self.inner_loss, theta)

    def curvature(self, theta: PyTree, damping: float | Scalar) -> lx.AbstractLinearOperator:
        """The Hessian in θ, or what the inner loss has in its place, and the damping."""
        return self.inner_loss.curvature(self, theta, damping)


class Smooth(AbstractInnerLoss):
    """A function as an inner loss."""

    function: Loss

    def __call__(self, inner_params: PyTree, outer_params: PyTree, *args: Any) -> Any:
        return self.function(inner_params, outer_params, *args)

    def curvature(
        self, at: InnerMinimum, theta: PyTree, damping: float | Scalar
    ) -> lx.AbstractLinearOperator:
        return hessian_operator(at.loss, theta, damping=damping)


def as_inner_loss(loss: Loss) -> AbstractInnerLoss:
    """The loss, with the Hessian for its curvature if it is a plain function."""
    return loss if isinstance(loss, AbstractInnerLoss) else Smooth(loss)


class GaussNewton(AbstractInnerLoss):
    """The inner loss ℓ(f(θ, ψ), ψ), with Jᵀ (∂²ℓ/∂f²) J in place of its Hessian in θ.

    Positive semidefinite wherever θ is, for an ℓ convex in f; equal to the Hessian where f is
    linear in θ. Elsewhere the hypergradient is an approximation.

    - `outputs`: f, a function of `(inner_params, outer_params, *args)`. A penalty on θ counts
      too: return θ beside the network's outputs.
    - `loss`: ℓ, a scalar function of `(outputs, outer_params, *args)`.
    """

    outputs: Callable[..., PyTree]
    loss: Loss

    def __call__(self, inner_params: PyTree, outer_params: PyTree, *args: Any) -> Scalar:
        """The inner loss."""
        return self.loss(self.outputs(inner_params, outer_params, *args), outer_params, *args)

    def curvature(
        self, at: "InnerMinimum", theta: PyTree, damping: float | Scalar
    ) -> lx.AbstractLinearOperator:
        """The Gauss–Newton matrix."""

        def outputs(theta: PyTree) -> PyTree:
            return at.call(self.outputs, theta)

        def loss(f: PyTree) -> Scalar:
            return self.loss(f, at.outer_params, *at.args)

        return gauss_newton_operator(outputs, loss, theta, damping=damping)


class LeastSquares(AbstractInnerLoss):
    """The inner loss ½‖r(θ, ψ)‖² + ½ ⟨λ(ψ), θ²⟩, whose adjoint may be solved in the dual.

    Its curvature is JᵀJ + diag(λ): the Hessian where r is linear in θ, else the Gauss–Newton
    matrix. [`Dual`][rcig_eqx.solvers.Dual] has one unknown for each residual, whatever the size of
    θ; any other solver takes products.

    - `residuals`: r, a function of `(inner_params, outer_params, *args)`.
    - `l2`: λ > 0, a function of `(outer_params, *args)`: one number, or a pytree of arrays that is
      a prefix of the inner parameters', each of its parameter's shape or a number.
    """

    residuals: Callable[..., PyTree]
    l2: Callable[..., PyTree]

    def __check_init__(self) -> None:
        for name in ("residuals", "l2"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: pass a function, such as "
                    "l2=lambda outer_params: 0.1 for a fixed λ."
                )

    def __call__(self, inner_params: PyTree, outer_params: PyTree, *args: Any) -> Scalar:
        """The inner loss."""
        theta = eqx.filter(as_arrays(inner_params), eqx.is_inexact_array)
        weights = self.weights(theta, outer_params, *args)
        penalties = jax.tree.map(lambda d, x: jnp.sum(d * x**2), weights, theta)
        squares = half_square(self.residuals(inner_params, outer_params, *args))
        return squares + 0.5 * jax.tree.reduce(jnp.add, penalties)

    def weights(self, theta: PyTree, outer_params: PyTree, *args: Any) -> PyTree:
        """λ as a pytree shaped like θ; `ValueError` if it does not fit or is not positive."""
        l2 = self.l2(outer_params, *args)
        try:
            jax.tree.map(lambda d, part: None, l2, theta)
        except ValueError as error:
            raise ValueError(
                f"l2 returns {jax.tree.structure(l2)}, no prefix of the inner parameters' "
                f"{jax.tree.structure(theta)}: return one number, or a pytree shaped like them."
            ) from error
        return jax.tree.map(lambda d, part: jax.tree.map(_spread(d), part), l2, theta)

    def curvature(
        self, at: "InnerMinimum", theta: PyTree, damping: float | Scalar
    ) -> DualizableOperator:
        """JᵀJ + D with D = λ + damping, which knows its dual."""

        def residuals(theta: PyTree) -> PyTree:
            return at.call(self.residuals, theta)

        weights = self.weights(theta, at.outer_params, *at.args)
        D = jax.tree.map(lambda d: d + jnp.asarray(damping, d.dtype), weights)
        squares = gauss_newton_operator(residuals, half_square, theta)

        def product(v: PyTree) -> PyTree:
            return jax.tree.map(lambda h, d, x: h + d * x, squares.mv(v), D, v)

        primal = lx.FunctionLinearOperator(
            product, squares.in_structure(), lx.positive_semidefinite_tag
        )
        return DualizableOperator(primal, lambda: LeastSquaresKernel(residuals, theta, D))

    @property
    def knows_dual(self) -> bool:
        return True


def _spread(d: Any) -> Callable[[Array], Array]:
    """λ over one leaf of θ."""
    kind = getattr(d, "dtype", np.result_type(d) if isinstance(d, int | float) else None)
    if kind is None or not (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    ):
        raise ValueError(f"l2 returns {d!r}: return real numbers or arrays of them.")
    if not isinstance(d, Tracer) and not (np.asarray(d) > 0).all():
        raise ValueError(
            f"l2 returns {d}: make it positive, such as exp(log_l2) of what is learned."
        )

    def over(x: Array) -> Array:
        if np.shape(d) not in ((), x.shape):
            raise ValueError(
                f"l2 returns {list(np.shape(d))} for parameters {list(x.shape)}: return a number "
                "or an array of that shape."
            )
        return jnp.broadcast_to(d, x.shape).astype(x.dtype)

    return over


def half_square(tree: PyTree) -> Scalar:
    """½‖r‖² over all leaves."""
    return 0.5 * squared_norm(tree)
