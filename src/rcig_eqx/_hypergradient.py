"""Implicit differentiation of a bilevel problem over pytrees, at a solution found somehow."""

from typing import Any, Literal, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from ._backend import transfers_allowed
from ._bilevel import (
    RESULTS,
    InnerMinimum,
    Loss,
    Preconditioner,
    Solver,
    check_solver,
    outcome,
    solve_adjoint,
    solver_options,
)
from ._parameters import check_scalar, split
from ._types import PyTree
from .solvers._curvature import cross_product


class Hypergradient(eqx.Module):
    """The outer loss, its gradient in the outer parameters, and what the solve cost.

    - `value`: the outer loss.
    - `gradient`: shaped like the outer parameters, `None` for what is not differentiated; a
      method's like the `Coreset`.
    - `stats`: scalars by name: `iterations`, `residual` (‖g − Hv‖/‖g‖) and `converged` (whether
      the solver reached what it was asked for) where there was a solve. `hypergradient` adds
      `products`, the Hessian-vector products spent, and `diverged`; a method `accuracy` on the
      outer batch, a fraction of one.

    `hypergradient` alone gives the others, a method `None`:

    - `direct`, `implicit`: the two parts of the gradient, `gradient = direct + implicit`.
    - `adjoint`: v, the `warm_start` of the next call.
    - `result`: `RESULTS.successful`, also for a solve that was truncated, or `RESULTS.diverged`.
      Print it for words that name the fix.
    """

    value: Scalar
    gradient: PyTree
    stats: dict[str, Array]
    direct: PyTree = None
    implicit: PyTree = None
    adjoint: PyTree = None
    result: RESULTS | None = None


@overload
def hypergradient(
    outer_loss: Loss,
    inner_loss: Loss,
    inner_params: PyTree,
    outer_params: PyTree,
    *args: Any,
    solver: Solver,
    damping: float | Scalar = ...,
    has_aux: Literal[False] = ...,
    warm_start: PyTree = ...,
    preconditioner: Preconditioner | None = ...,
    filter_spec: PyTree = ...,
    inner_filter_spec: PyTree = ...,
    throw: bool = ...,
) -> Hypergradient: ...
@overload
def hypergradient(
    outer_loss: Loss,
    inner_loss: Loss,
    inner_params: PyTree,
    outer_params: PyTree,
    *args: Any,
    solver: Solver,
    damping: float | Scalar = ...,
    has_aux: Literal[True],
    warm_start: PyTree = ...,
    preconditioner: Preconditioner | None = ...,
    filter_spec: PyTree = ...,
    inner_filter_spec: PyTree = ...,
    throw: bool = ...,
) -> tuple[Hypergradient, Any]: ...


@transfers_allowed()
def hypergradient(
    outer_loss: Loss,
    inner_loss: Loss,
    inner_params: PyTree,
    outer_params: PyTree,
    *args: Any,
    solver: Solver,
    damping: float | Scalar = 0.0,
    has_aux: bool = False,
    warm_start: PyTree = None,
    preconditioner: Preconditioner | None = None,
    filter_spec: PyTree = eqx.is_inexact_array,
    inner_filter_spec: PyTree = eqx.is_inexact_array,
    throw: bool = False,
) -> Hypergradient | tuple[Hypergradient, Any]:
    """dL_o/dψ of a bilevel problem, by the implicit function theorem (paper, equation 1).

        dL_o/dψ = ∂L_o/∂ψ − ∂/∂ψ ⟨∂L_i/∂θ, v⟩        (∂²L_i/∂θ² + damping) v = ∂L_o/∂θ

    The minus sign is missing from the paper's equation 1. Both parameters may be whole Equinox
    modules. It takes θ however it was found: a gradient with respect to where that search started
    is zero. [`implicitly_differentiable`][rcig_eqx.implicitly_differentiable] makes the search
    itself differentiable.

    **Arguments:**

    - `outer_loss`, `inner_loss`: scalar functions of `(inner_params, outer_params, *args)`, which
      may have a `jax.custom_vjp`. The curvature is the inner loss's Hessian;
      [`GaussNewton`][rcig_eqx.GaussNewton] and [`LeastSquares`][rcig_eqx.LeastSquares] are inner
      losses that have another.
    - `inner_params`: θ, a pytree that minimises the inner loss.
    - `outer_params`: ψ, a pytree. In either a Python float is taken for an array, as by `jax.grad`;
      one in an Equinox module is held fixed, with a warning.
    - `args`: what both losses are evaluated on: batches, a key, an `equinox.nn.State`. Gradient
      and every Hessian product see the same batch and key, as they would in a closure; of one
      fixed batch the inner loss is an ordinary function. A `State` is held fixed: each evaluation
      gets a copy, and the outer loss may return the new one as aux. It must not be in a closure.
    - `solver`: for v, from `rcig_eqx.solvers` or lineax. The operator is tagged positive
      semidefinite, which is true at a minimum. `DualCholesky` and `DualCG` for a `LeastSquares`.
    - `damping`: added to the Hessian's diagonal.
    - `has_aux`: whether the outer loss returns `(loss, aux)`.
    - `warm_start`: a v to start from, the `adjoint` of an earlier call. Direct solvers ignore it.
      With any other the hypergradient has no derivatives: a truncated solve from it is not linear.
    - `preconditioner`: for conjugate gradients, a positive definite operator or a function of a
      pytree shaped like θ, close to the inverse Hessian.
    - `filter_spec`, `inner_filter_spec`: what of ψ is differentiated and what of θ was minimised
      over, as in `equinox.partition`: a function of a leaf, or a prefix of booleans. Frozen leaves
      are held fixed.
    - `throw`: raise at run time when the solve diverged, instead of reporting it in `result`: under
      `equinox.filter_jit` one `EquinoxRuntimeError`, outside it wrapped in JAX's own.

    **Returns:** a `Hypergradient`, and the aux after it under `has_aux`. No derivative flows
    through `warm_start` or `preconditioner`.

    Raises `ValueError` before any work for losses that are not scalar, parameters without a
    floating-point array, a Python integer among them, an integer or complex array to differentiate,
    a `warm_start` of another structure, and a solver that does not fit.
    """
    check_solver(solver, inner_loss, damping, preconditioner, warm_start)
    theta, frozen = split("inner_params", inner_params, inner_filter_spec)
    psi, fixed = split("outer_params", outer_params, filter_spec)
    options = solver_options(preconditioner, warm_start, theta)

    def at(psi: PyTree) -> InnerMinimum:
        return InnerMinimum(inner_loss, frozen, eqx.combine(psi, fixed), args)

    def outer(theta: PyTree, psi: PyTree) -> Any:
        return at(psi).call(outer_loss, theta)

    check_scalar("inner_loss", lambda theta, psi: at(psi).loss(theta), theta, psi)
    check_scalar("outer_loss", outer, theta, psi, has_aux=has_aux)

    with_aux = outer if has_aux else lambda theta, psi: (outer(theta, psi), None)
    (value, aux), (g_T, direct) = eqx.filter_value_and_grad(
        lambda both: with_aux(*both), has_aux=True
    )((theta, psi))
    v, stats = solve_adjoint(
        at(psi), theta, g_T, solver=solver, damping=damping, options=options, throw=throw
    )

    cross = cross_product(lambda theta, psi: at(psi).loss(theta), theta, psi, v)
    implicit = jax.tree.map(jnp.negative, cross)
    gradient = jax.tree.map(jnp.add, direct, implicit)
    code = outcome(stats["diverged"])
    result = Hypergradient(value, gradient, stats, direct, implicit, v, code)
    return (result, aux) if has_aux else result
