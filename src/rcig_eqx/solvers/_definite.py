"""What our solvers of symmetric positive definite systems share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Scalar

from .._types import PyTree


class AbstractDefiniteSolver(lx.AbstractLinearSolver[Any]):
    """A lineax solver for positive definite operators on pytrees of real arrays.

    Such an operator is its own transpose and has full rank.
    """

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict[str, Any]]:
        return state, options

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict[str, Any]]:
        return state, options

    def assume_full_rank(self) -> bool:
        return True


def check_definite(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The operator, if it is tagged as these solvers need it; `ValueError` if not."""
    if not lx.is_positive_semidefinite(operator):
        raise ValueError(
            "This solver needs a positive definite operator: tag it with "
            "lineax.positive_semidefinite_tag if mathematics guarantees that it is."
        )
    return operator


def dot(a: PyTree, b: PyTree) -> Scalar:
    """⟨a, b⟩ over all leaves."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, products)


def largest(a: PyTree) -> Scalar:
    """The largest absolute value over all leaves, 1 if all are zero: what to divide by."""
    sizes = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(a)]
    size = functools.reduce(jnp.maximum, sizes)
    return jnp.where(size == 0, 1, size)


def divide(a: PyTree, scale: Scalar) -> PyTree:
    """a / scale, in the leaves' own dtypes."""
    return jax.tree.map(lambda x: x / scale.astype(x.dtype), a)


def norm(a: PyTree) -> Scalar:
    """‖a‖ over all leaves, also where the squares of their numbers underflow or overflow."""
    scale = largest(a)
    unit = divide(a, scale)
    return scale * jnp.sqrt(dot(unit, unit))


def axpy(scale: Scalar, x: PyTree, y: PyTree) -> PyTree:
    """scale · x + y, in the leaves' own dtypes."""
    return jax.tree.map(lambda x, y: jnp.asarray(scale, x.dtype) * x + y, x, y)


def known(x: PyTree, residual: Scalar) -> PyTree:
    """x, not a number where its residual is not finite: a right-hand side of NaN has no x of 0."""
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(residual), x, jnp.nan), x)


def relative(residual: PyTree, vector: PyTree) -> Scalar:
    """‖residual‖ / ‖vector‖, and ‖residual‖ itself for a right-hand side of zero."""
    return ratio(norm(residual), norm(vector))


def residual_of(operator: lx.AbstractLinearOperator, x: PyTree, b: PyTree) -> Scalar:
    """‖b − A x‖ / ‖b‖, by one product."""
    return relative(jax.tree.map(jnp.subtract, b, operator.mv(x)), b)


def ratio(part: Scalar, whole: Scalar) -> Scalar:
    """part / whole, and part itself of nothing."""
    return part / jnp.where(whole > 0, whole, 1)
