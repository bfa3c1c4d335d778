"""The Hessian of a loss as a lineax operator on pytrees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Scalar

from .._trees import axpy
from .._types import PyTree


def hessian_operator(
    loss: Callable[[PyTree], Scalar], params: PyTree, *, damping: float | Scalar = 0.0
) -> lx.FunctionLinearOperator:
    """v ↦ ∂²L/∂θ² v + damping · v, by forward over reverse (Pearlmutter, 1994; section 3.4).

    The gradient is linearised once, so that a product is one tangent pass through it and repeats
    no forward pass; the price is that its activations are kept.

    The operator is tagged positive semidefinite, as its solvers want it. That is a promise of the
    caller's: it holds at a minimum of the loss, and everywhere for a convex one. Elsewhere add
    damping, or take [`gauss_newton_operator`][rcig_eqx.operators.gauss_newton_operator].
    """
    _, product = jax.linearize(jax.grad(loss), params)
    return damped(product, params, damping)


def damped(
    product: Callable[[PyTree], PyTree], params: PyTree, damping: float | Scalar
) -> lx.FunctionLinearOperator:
    """v ↦ product(v) + damping · v, as a positive semidefinite operator."""

    def total(v: PyTree) -> PyTree:
        return axpy(jnp.asarray(damping), v, product(v))

    structure = jax.eval_shape(lambda: params)
    return lx.FunctionLinearOperator(total, structure, lx.positive_semidefinite_tag)
