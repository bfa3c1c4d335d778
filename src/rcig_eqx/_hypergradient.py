"""Implicit differentiation of a bilevel problem over pytrees."""

from collections.abc import Callable
from typing import Any

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

    with_aux = outer_loss if has_aux else lambda theta, psi: (outer_loss(theta, psi), None)
    (value, aux), (g_T, direct) = jax.value_and_grad(with_aux, argnums=(0, 1), has_aux=True)(
        inner_params, outer_params
    )
    operator = hessian_operator(
        lambda theta: inner_loss(theta, outer_params), inner_params, damping=damping
    )
    solution = lx.linear_solve(operator, g_T, solver, throw=False)

    def slope(psi: PyTree) -> Scalar:
        """⟨∂L_i/∂θ, v⟩ as a function of ψ."""
        along = lambda theta: inner_loss(theta, psi)  # noqa: E731
        return jax.jvp(along, (inner_params,), (solution.value,))[1]

    gradient = jax.tree.map(jnp.subtract, direct, jax.grad(slope)(outer_params))
    result = Hypergradient(value, gradient, solve_stats(solution))
    return (result, aux) if has_aux else result


def solve_stats(solution: lx.Solution) -> dict[str, Array]:
    """`iterations`, `residual` and `converged` of a lineax solution, where it has them."""
    stats = {"converged": solution.result == lx.RESULTS.successful}
    for name, given in (("iterations", "num_steps"), ("residual", "residual")):
        if solution.stats.get(given) is not None:
            stats[name] = jnp.asarray(solution.stats[given])
    return stats
