"""Implicit differentiation of a bilevel problem over pytrees, at a solution found somehow."""

from typing import Any, Literal, overload

import equinox as eqx
from jaxtyping import Array, Scalar

from .._backend import transfers_allowed
from .._trees import add
from .._types import PyTree
from ..operators._hessian import cross_product
from ._checks import Preconditioner, Solver, check_adjoint, solver_options
from ._engine import Hypergradient, differentiate, outcome, solve_adjoint
from ._inner import InnerMinimum, Loss, as_inner_loss
from ._parameters import check_scalar, split


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
      `GaussNewton` and `LeastSquares` are inner
      losses that have another.
    - `inner_params`: θ, a pytree that minimizes the inner loss.
    - `outer_params`: ψ, a pytree. In either a Python float is taken for an array, as by `jax.grad`;
      one in an Equinox module is held fixed, with a warning.
    - `args`: what both losses are evaluated on: batches, a key, an `equinox.nn.State`. Gradient
      and every Hessian product see the same batch and key, as they would in a closure; of one
      fixed batch the inner loss is an ordinary function. A `State` is held fixed: each evaluation
      gets a copy, and the outer loss may return the new one as aux. It must not be in a closure.
    - `solver`: for v, from `rcig_eqx.solvers` or lineax. The operator is tagged positive
      semidefinite, which is true at a minimum. [`Dual`][rcig_eqx.solvers.Dual] solves a
      `LeastSquares` with as many unknowns as residuals.
    - `damping`: added to the Hessian's diagonal.
    - `has_aux`: whether the outer loss returns `(loss, aux)`.
    - `warm_start`: a v to start from, the `adjoint` of an earlier call. Direct solvers ignore it.
      With any other the hypergradient has no derivatives: a truncated solve from it is not linear.
    - `preconditioner`: for conjugate gradients, a positive definite operator or a function of a
      pytree shaped like θ, close to the inverse Hessian.
    - `filter_spec`, `inner_filter_spec`: what of ψ is differentiated and what of θ was minimized
      over, as in `equinox.partition`: a function of a leaf, or a prefix of booleans. Frozen leaves
      are held fixed.
    - `throw`: raise at run time when the solve diverged, instead of reporting it in `result`: under
      `equinox.filter_jit` one `EquinoxRuntimeError`, outside it wrapped in JAX's own.

    **Returns:** a `Hypergradient`, and the aux after it under `has_aux`. No derivative flows
    through `warm_start` or `preconditioner`.

    Raises `ValueError` before any work for losses that are not scalar, parameters without a
    floating-point array, with an integer or complex one to differentiate or a Python integer, a
    `warm_start` of another structure, and a solver that does not fit.
    """
    loss = as_inner_loss(inner_loss)
    check_adjoint(solver, loss, damping, preconditioner, warm_start)
    theta, frozen = split("inner_params", inner_params, inner_filter_spec)
    psi, fixed = split("outer_params", outer_params, filter_spec)
    options = solver_options(preconditioner, warm_start, theta)

    def at(psi: PyTree) -> InnerMinimum:
        return InnerMinimum(loss, frozen, eqx.combine(psi, fixed), args)

    def inner(theta: PyTree, psi: PyTree) -> Any:
        return at(psi).loss(theta)

    def outer(theta: PyTree, psi: PyTree) -> Any:
        return at(psi).call(outer_loss, theta)

    check_scalar("inner_loss", inner, theta, psi)
    check_scalar("outer_loss", outer, theta, psi, has_aux=has_aux)

    def with_aux(theta: PyTree, psi: PyTree) -> tuple[Scalar, Any]:
        return outer(theta, psi) if has_aux else (outer(theta, psi), None)

    def solve(g: PyTree) -> tuple[PyTree, dict[str, Array]]:
        return solve_adjoint(
            at(psi), theta, g, solver=solver, damping=damping, options=options, throw=throw
        )

    def cross(psi: PyTree, v: PyTree) -> PyTree:
        return cross_product(inner, theta, psi, v)

    parts = differentiate(with_aux, cross, theta, psi, solve)
    result = Hypergradient(
        parts.value,
        add(parts.direct, parts.implicit),
        parts.stats,
        parts.direct,
        parts.implicit,
        parts.adjoint,
        outcome(parts.stats["diverged"]),
    )
    return (result, parts.aux) if has_aux else result
