"""Kernel operators: the dual of a regularized least-squares problem, and the way back from it.

The primal operator JᵀWJ + D has one row a parameter; its kernel J D⁻¹ Jᵀ + W⁻¹ has one a residual.
"""

import abc
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Scalar

from .._trees import subtract
from .._types import PyTree

T = TypeVar("T")


class AbstractKernel(lx.AbstractLinearOperator):
    """K = s J D⁻¹ Jᵀ + s W⁻¹, the kernel of JᵀWJ + D: symmetric and positive definite.

    J, D and W are the subclass's. The scale s > 0 changes no solution: with D = λI and s = λ the
    kernel is J Jᵀ + λ W⁻¹.
    """

    @abc.abstractmethod
    def tangent(self, v: PyTree) -> Float[Array, "..."]:
        """J v, for a v shaped like the parameters."""

    @abc.abstractmethod
    def cotangent(self, u: Float[Array, "..."]) -> PyTree:
        """Jᵀ u, shaped like the parameters."""

    @abc.abstractmethod
    def weigh(self, v: PyTree) -> PyTree:
        """s D⁻¹ v."""

    @property
    @abc.abstractmethod
    def scale(self) -> float | Scalar:
        """s."""

    @property
    @abc.abstractmethod
    def noise(self) -> float | Float[Array, "..."]:
        """The diagonal of s W⁻¹: one number, or an array in the residuals' shape."""

    @abc.abstractmethod
    def preconditioner(self) -> lx.AbstractLinearOperator | None:
        """A positive definite operator close to K⁻¹, for conjugate gradients; `None` if unknown."""

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        """K u: one transpose and one tangent pass."""
        return self.tangent(self.weigh(self.cotangent(vector))) + self.noise * vector

    def out_structure(self) -> Any:
        """That of the residuals, as `in_structure`."""
        return self.in_structure()

    def transpose(self) -> "AbstractKernel":
        """The same: it is symmetric."""
        return self


def woodbury(
    kernel: AbstractKernel, g: PyTree, solve: Callable[[Array], tuple[Array, T]]
) -> tuple[PyTree, Array, T]:
    """Solve (JᵀWJ + D) v = g in the dual: v = D⁻¹(g − Jᵀβ), K β = s J D⁻¹ g.

    `solve` solves with K, and returns β and what it has to say of it. **Returns:** g − Jᵀβ = D v,
    β, and what `solve` said.
    """
    beta, said = solve(kernel.tangent(kernel.weigh(g)))
    return subtract(g, kernel.cotangent(beta)), beta, said


def _materialized(kernel: AbstractKernel) -> lx.AbstractLinearOperator:
    structure = kernel.in_structure()
    K = kernel.as_matrix().reshape(*structure.shape, *structure.shape)
    return lx.PyTreeLinearOperator(K, structure, lx.positive_semidefinite_tag)


def register(
    kind: type[lx.AbstractLinearOperator],
    materialize: Callable[[Any], lx.AbstractLinearOperator],
) -> None:
    """Tell lineax, which asks by single dispatch, that such operators are positive definite."""
    lx.materialise.register(kind, materialize)
    lx.diagonal.register(kind, lambda operator: jnp.diagonal(operator.as_matrix()))
    for same in (lx.linearise, lx.conj):
        same.register(kind, lambda operator: operator)
    for yes in (lx.is_symmetric, lx.is_positive_semidefinite):
        yes.register(kind, lambda operator: True)
    for no in (
        lx.is_diagonal,
        lx.is_tridiagonal,
        lx.has_unit_diagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.is_negative_semidefinite,
    ):
        no.register(kind, lambda operator: False)


register(AbstractKernel, _materialized)
