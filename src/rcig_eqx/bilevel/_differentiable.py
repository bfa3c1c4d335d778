"""Any inner solver, made differentiable by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
from jaxtyping import Scalar

from .._trees import negative
from .._types import PyTree
from ..operators._hessian import linearized
from ._checks import Preconditioner, Solver, check_adjoint, solver_options
from ._engine import solve_adjoint
from ._inner import InnerMinimum, Loss, as_inner_loss
from ._parameters import check_pair, check_scalar, split

_OPTIONS = (
    "A keyword of minimize has no derivatives, as the inner loss does not get it: pass what should "
    "have some in outer_params or args."
)


def implicitly_differentiable(
    minimize: Callable[..., PyTree],
    inner_loss: Loss,
    *,
    solver: Solver,
    damping: float | Scalar = 0.0,
    preconditioner: Preconditioner | None = None,
    has_aux: bool = False,
    inner_filter_spec: PyTree = eqx.is_inexact_array,
    throw: bool = False,
) -> Callable[..., PyTree]:
    """The same minimizer, with the derivatives of the minimum it found.

        θ = minimize(start, ψ, *args)     dθ = −(∂²L_i/∂θ² + damping)⁻¹ d(∂L_i/∂θ at fixed θ)

    `jax.grad` and `jax.jvp` of anything made of its result go through this rule instead of through
    the minimizer's steps, which need be neither differentiable nor traceable by JAX outside `jit`.
    So do gradients of gradients. The gradient with respect to `start` is zero: a minimum does not
    know where the search for it began. What the derivative should reach must be in `outer_params`,
    `args` or the fields of an `inner_loss` that is a module; a closure's variables get none.

    **Arguments:**

    - `minimize`: a function `(start, outer_params, *args, **options) -> inner_params`. Keywords,
      such as a number of steps, go to it alone: the inner loss does not get them, and they have no
      derivatives.
    - `inner_loss`: what it minimizes, a scalar function of `(inner_params, outer_params, *args)`.
      Batches and keys in `args` are the same in the minimizer, the gradient and every Hessian
      product.
    - `solver`, `damping`, `preconditioner`, `inner_filter_spec`: as in
      [`hypergradient`][rcig_eqx.hypergradient]. Frozen leaves of the result have no derivative.
    - `has_aux`: whether `minimize` returns `(inner_params, aux)`. So does the result then; aux has
      no derivatives.
    - `throw`: raise at run time when an adjoint solve diverged. If not, the derivative is NaN then:
      there is no result code to look at.

    **Returns:** a function like `minimize`. A backward pass costs one solve.

    Raises `ValueError` for a solver that does not fit, and the function that is returned for a
    result of `minimize` that cannot be differentiated.
    """
    loss = as_inner_loss(inner_loss)
    check_adjoint(solver, loss, damping, preconditioner)
    rule = _Rule(solver, damping, preconditioner, throw)

    def solution(start: PyTree, outer_params: PyTree, *args: Any, **options: Any) -> PyTree:
        given = _fixed((start, outer_params, args))
        options = eqxi.nondifferentiable(options, msg=_OPTIONS)
        found = _fixed(minimize(given[0], given[1], *given[2], **options))
        found, aux = check_pair("minimize", found) if has_aux else (found, None)
        try:
            theta, frozen = split("The result of minimize", found, inner_filter_spec)
            at = InnerMinimum(loss, frozen, outer_params, args)
            check_scalar("inner_loss", at.loss, theta)
        except Exception as error:
            if isinstance(found, tuple) and len(found) == 2 and not has_aux:
                error.add_note("If minimize returns (inner_params, aux), pass has_aux=True.")
            raise
        found = eqx.combine(_attach(theta, at, rule), frozen)
        return (found, aux) if has_aux else found

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

    cross = linearized(gradient, moving)[1](moved)
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
