"""The Gauss–Newton matrix of a loss of outputs, as a lineax operator on pytrees."""

from collections.abc import Callable

import jax
import lineax as lx
from jaxtyping import Scalar

from .._types import PyTree
from ._hessian import damped, hessian_product, linearized


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
    f, tangent = linearized(outputs, params)
    transpose = jax.linear_transpose(tangent, params)
    curvature = hessian_product(loss, f)

    def product(v: PyTree) -> PyTree:
        (result,) = transpose(curvature(tangent(v)))
        return result

    return damped(product, params, damping)
