"""The Hessian of a loss as a lineax operator on pytrees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Scalar

from .._trees import axpy
from .._types import PyTree

# What is slower in reverse over reverse, or has no transpose. "convolve" is `models/`' own.
_FORWARD = {"conv_general_dilated", "convolve", "while"}


def hessian_operator(
    loss: Callable[[PyTree], Scalar], params: PyTree, *, damping: float | Scalar = 0.0
) -> lx.FunctionLinearOperator:
    """v ↦ ∂²L/∂θ² v + damping · v (Pearlmutter, 1994; section 3.4).

    The gradient is linearized once, so that a product repeats no forward pass; the price is that
    its activations are kept.

    A product is reverse over reverse: the gradient's transpose applied to v, the same vector by
    symmetry. It is forward over reverse, a tangent pass through the gradient, where the gradient
    has a convolution, which is several times slower in reverse over reverse on a CPU, or a
    `while_loop`, which has no transpose. A `jax.custom_vjp` has no tangent pass: with one in the
    loss the product is reverse over reverse whatever else there is.

    The operator is tagged positive semidefinite, as its solvers want it. That is a promise of the
    caller's: it holds at a minimum of the loss, and everywhere for a convex one. Elsewhere add
    damping, or take `gauss_newton_operator`.
    """
    return damped(hessian_product(loss, params), params, damping)


def hessian_product(loss: Callable[[PyTree], Scalar], params: PyTree) -> Callable[[PyTree], PyTree]:
    """v ↦ ∂²L/∂θ² v, in the mode that `hessian_operator` says."""
    gradient = jax.grad(loss)
    if in_forward(gradient, params):
        return jax.linearize(gradient, params)[1]
    _, transpose = jax.vjp(gradient, params)
    return lambda v: transpose(v)[0]


def cross_product(
    loss: Callable[[PyTree, PyTree], Scalar], params: PyTree, psi: PyTree, v: PyTree
) -> PyTree:
    """∂/∂ψ ⟨∂L/∂θ, v⟩ of a loss of (θ, ψ), by the rule of `hessian_operator`."""

    def gradient(psi: PyTree) -> PyTree:
        return jax.grad(loss)(params, psi)

    if in_forward(gradient, psi):
        return jax.grad(lambda psi: jax.jvp(lambda x: loss(x, psi), (params,), (v,))[1])(psi)
    _, transpose = jax.vjp(gradient, psi)
    return transpose(v)[0]


def in_forward(gradient: Callable[[PyTree], PyTree], at: PyTree) -> bool:
    """Whether a gradient is to be differentiated in forward mode, as `hessian_operator` says."""
    names = primitives(gradient, at)
    return bool(names & _FORWARD) and not has_custom_vjp(names)


def damped(
    product: Callable[[PyTree], PyTree], params: PyTree, damping: float | Scalar
) -> lx.FunctionLinearOperator:
    """v ↦ product(v) + damping · v, as a positive semidefinite operator."""

    def total(v: PyTree) -> PyTree:
        return axpy(jnp.asarray(damping), v, product(v))

    structure = jax.eval_shape(lambda: params)
    return lx.FunctionLinearOperator(total, structure, lx.positive_semidefinite_tag)


def linearized(
    function: Callable[[Any], PyTree], at: Any
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """f(x) and v ↦ J v, also of functions with a `jax.custom_vjp`: J is its transpose's then."""
    if not has_custom_vjp(primitives(function, at)):
        return jax.linearize(function, at)
    f, transpose = jax.vjp(function, at)
    tangent = jax.linear_transpose(lambda u: transpose(u)[0], f)
    return f, lambda v: tangent(v)[0]


def primitives(function: Callable[[Any], PyTree], at: Any) -> set[str]:
    """The names of what a function is made of, but not of the insides of its custom rules."""
    return set(_names(jax.make_jaxpr(function)(at).jaxpr))


def has_custom_vjp(names: set[str]) -> bool:
    """Whether there is a `jax.custom_vjp` among the primitives."""
    return any(name.startswith("custom_vjp") for name in names)


def _names(jaxpr: Any):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name.startswith("custom_"):
            continue
        for part in jax.tree.leaves(equation.params):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from _names(inner)
