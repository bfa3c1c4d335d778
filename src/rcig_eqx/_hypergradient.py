"""Implicit differentiation of a bilevel problem over pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree, Scalar

from .solvers import hessian_operator


class Hypergradient(eqx.Module):
    """The outer loss, its gradient in the outer parameters, and what the solve cost.

    - `value`: the outer loss.
    - `gradient`: shaped like the outer parameters; a method's like the `Coreset`.
    - `stats`: scalars by name: `iterations`, `residual` and `converged` where there was a solve;
      a method adds `accuracy` on the outer batch, a fraction of one.
    """

    value: Scalar
    gradient: PyTree
    stats: dict[str, Array]


def hypergradient(
    outer_loss: Callable[[PyTree, PyTree], Any],
    inner_loss: Callable[[PyTree, PyTree], Scalar],
    inner_params: PyTree,
    outer_params: PyTree,
    *,
    solver: lx.AbstractLinearSolver,
    damping: float | Scalar = 0.0,
    has_aux: bool = False,
) -> Hypergradient | tuple[Hypergradient, Any]:
    """dL_o/dψ of a bilevel problem, by the implicit function theorem (paper, equation 1).

        dL_o/dψ = ∂L_o/∂ψ − ∂/∂ψ ⟨∂L_i/∂θ, v⟩        (∂²L_i/∂θ² + damping) v = ∂L_o/∂θ

    The minus sign is missing from the paper's equation 1.

    **Arguments:**

    - `outer_loss`, `inner_loss`: scalar functions of `(inner_params, outer_params)`.
    - `inner_params`: θ, a pytree of floating-point arrays that minimises the inner loss, however
      it was found. A gradient with respect to where that search started is zero.
    - `outer_params`: ψ, a pytree of floating-point arrays.
    - `solver`: a lineax solver for v, from `rcig_eqx.solvers` or lineax. The operator is tagged
      positive semidefinite, which is true at a minimum.
    - `damping`: added to the Hessian's diagonal.
    - `has_aux`: whether the outer loss returns `(loss, aux)`.

    **Returns:** a `Hypergradient`, and the aux after it under `has_aux`. Its `stats` hold what the
    solver reports.
    """

    def inverse(g_T: PyTree) -> lx.Solution:
        loss = lambda theta: inner_loss(theta, outer_params)  # noqa: E731
        operator = hessian_operator(loss, inner_params, damping=damping)
        return lx.linear_solve(operator, g_T, solver, throw=False)

    with_aux = outer_loss if has_aux else lambda theta, psi: (outer_loss(theta, psi), None)
    parts = implicit_parts(with_aux, inner_loss, inner_params, outer_params, inverse)
    gradient = jax.tree.map(jnp.add, parts.direct, parts.implicit)
    result = Hypergradient(parts.value, gradient, solve_stats(parts.solution))
    return (result, parts.aux) if has_aux else result


class ImplicitParts(NamedTuple):
    """A hypergradient in its two parts, with the outer loss's value and aux and v's solution."""

    value: Scalar
    aux: Any
    direct: PyTree
    implicit: PyTree
    solution: lx.Solution


def implicit_parts(
    outer_loss: Callable[[PyTree, PyTree], tuple[Scalar, Any]],
    inner_loss: Callable[[PyTree, PyTree], Scalar],
    inner_params: PyTree,
    outer_params: PyTree,
    inverse: Callable[[PyTree], lx.Solution],
) -> ImplicitParts:
    """Direct and implicit gradient apart; `inverse` solves for v given ∂L_o/∂θ."""
    (value, aux), (g_T, direct) = jax.value_and_grad(outer_loss, argnums=(0, 1), has_aux=True)(
        inner_params, outer_params
    )
    solution = inverse(g_T)

    def slope(psi: PyTree) -> Scalar:
        """⟨∂L_i/∂θ, v⟩ as a function of ψ."""
        along = lambda theta: inner_loss(theta, psi)  # noqa: E731
        return jax.jvp(along, (inner_params,), (solution.value,))[1]

    implicit = jax.tree.map(jnp.negative, jax.grad(slope)(outer_params))
    return ImplicitParts(value, aux, direct, implicit, solution)


def solve_stats(solution: lx.Solution) -> dict[str, Array]:
    """`iterations`, `residual` and `converged` of a lineax solution, where it has them."""
    stats = {"converged": solution.result == lx.RESULTS.successful}
    for name, given in (("iterations", "num_steps"), ("residual", "residual")):
        if solution.stats.get(given) is not None:
            stats[name] = jnp.asarray(solution.stats[given])
    return stats
