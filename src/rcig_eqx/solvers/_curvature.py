"""Hessian and Gauss–Newton products as lineax operators on pytrees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Scalar

from .._types import PyTree
from ._definite import axpy


def hessian_operator(
    loss: Callable[[PyTree], Scalar], params: PyTree, *, damping: float | Scalar = 0.0
) -> lx.FunctionLinearOperator:
    """v ↦ ∂²L/∂θ² v + damping · v, by forward over reverse (Pearlmutter, 1994; section 3.4).

    The gradient is linearised once, so that a product is one tangent pass through it and repeats
    no forward pass; the price is that its activations are kept.

    The operator is tagged positive semidefinite, as its solvers want it. That is a promise of the
    caller's: it holds at a minimum of the loss, and everywhere for a convex one. Elsewhere add
    damping, or take [`gauss_newton_operator`][rcig_eqx.solvers.gauss_newton_operator].
    """
    _, product = jax.linearize(jax.grad(loss), params)
    return damped(product, params, damping)


def gauss_newton_operator(
    outputs: Callable[[PyTree], PyTree],
    loss: Callable[[PyTree], Scalar],
    params: PyTree,
    *,
    damping: float | Scalar = 0.0,
) -> lx.FunctionLinearOperator:
    """v ↦ Jᵀ (∂²ℓ/∂f²) J v + damping · v, for a loss ℓ(f(θ)) that is convex in the outputs f.

    Positive semidefinite wherever θ is. Equal to the Hessian where f is linear in θ. A product is
    a tangent and a transpose pass through the outputs.
    """
    f, tangent = jax.linearize(outputs, params)
    transpose = jax.linear_transpose(tangent, params)
    curvature = jax.linearize(jax.grad(loss), f)[1]

    def product(v: PyTree) -> PyTree:
        (result,) = transpose(curvature(tangent(v)))
        return result

    return damped(product, params, damping)


def damped(
    product: Callable[[PyTree], PyTree], params: PyTree, damping: float | Scalar
) -> lx.FunctionLinearOperator:
    """v ↦ product(v) + damping · v, as a positive semidefinite operator."""

    def total(v: PyTree) -> PyTree:
        return axpy(jnp.asarray(damping), v, product(v))

    structure = jax.eval_shape(lambda: params)
    return lx.FunctionLinearOperator(total, structure, lx.positive_semidefinite_tag)
