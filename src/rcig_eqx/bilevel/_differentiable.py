"""Any inner solver, made differentiable by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Scalar

from .._trees import negative
from .._types import PyTree
from ._checks import (
    Preconditioner,
    Solver,
    check_adjoint,
    check_scalar,
    solver_options,
    split,
)
from ._engine import solve_adjoint
from ._inner import InnerMinimum, Loss, as_inner_loss


def implicitly_differentiable(
    minimise: Callable[..., PyTree],
    inner_loss: Loss,
    *,
    solver: Solver,
    damping: float | Scalar = 0.0,
    preconditioner: Preconditioner | None = None,
    inner_filter_spec: PyTree = eqx.is_inexact_array,
    throw: bool = False,
) -> Callable[..., PyTree]:
    """The same minimiser, with the derivatives of the minimum it found.

        θ = minimise(start, ψ, *args)     dθ = −(∂²L_i/∂θ² + damping)⁻¹ d(∂L_i/∂θ at fixed θ)

    `jax.grad` and `jax.jvp` of anything made of its result go through this rule instead of through
    the minimiser's steps, which need be neither differentiable nor traceable by JAX outside `jit`.
    So do gradients of gradients. The gradient with respect to `start` is zero: a minimum does not
    know where the search for it began. What the derivative should reach must be in `outer_params`,
    `args` or the fields of an `inner_loss` that is a module; a closure's variables get none.

    **Arguments:**

    - `minimise`: a function `(start, outer_params, *args) -> inner_params`.
    - `inner_loss`: what it minimises, a scalar function of `(inner_params, outer_params, *args)`.
      Batches and keys in `args` are the same in the minimiser, the gradient and every Hessian
      product.
    - `solver`, `damping`, `preconditioner`, `inner_filter_spec`: as in
      [`hypergradient`][rcig_eqx.hypergradient]. Frozen leaves of the result have no derivative.
    - `throw`: raise at run time when an adjoint solve diverged. If not, the derivative is NaN then:
      there is no result code to look at.

    **Returns:** a function `(start, outer_params, *args) -> inner_params`. A backward pass costs
    one solve.
    """
    loss = as_inner_loss(inner_loss)
    check_adjoint(solver, loss, damping, preconditioner)
    rule = _Rule(solver, damping, preconditioner, throw)

    def solution(start: PyTree, outer_params: PyTree, *args: Any) -> PyTree:
        given = _fixed((start, outer_params, args))
        found = minimise(given[0], given[1], *given[2])
        theta, frozen = split("The result of minimise", _fixed(found), inner_filter_spec)
        at = InnerMinimum(loss, frozen, outer_params, args)
        check_scalar("inner_loss", at.loss, theta)
        return eqx.combine(_attach(theta, at, rule), frozen)

    return solution


class _Rule(eqx.Module):
    """How a tangent of θ is solved for."""

    solver: Solver
    damping: float | Scalar
    preconditioner: Preconditioner | None
    throw: bool


def _fixed(tree: PyTree) -> PyTree:
    """The same without derivatives."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


@eqx.filter_custom_jvp
def _attach(theta: PyTree, at: InnerMinimum, rule: _Rule) -> PyTree:
    """θ, with the derivative of a minimum."""
    del at, rule
    return theta


@_attach.def_jvp
def _attach_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[PyTree, PyTree]:
    at, rule = primals[1:]
    moved = tangents[1]
    theta = _attach(*primals)  # not primals[0]: the second derivative moves it too
    there = jax.tree.map(lambda x: x is not None, moved, is_leaf=lambda x: x is None)
    moving, still = eqx.partition(at, there)

    def gradient(moving: InnerMinimum) -> PyTree:
        return jax.grad(eqx.combine(moving, still).loss)(theta)

    cross = jax.jvp(gradient, (moving,), (moved,))[1]
    theta_dot, _ = solve_adjoint(
        at,
        theta,
        negative(cross),
        solver=rule.solver,
        damping=rule.damping,
        options=solver_options(rule.preconditioner, None, theta),
        strict=True,
        throw=rule.throw,
    )
    return theta, theta_dot
