"""The adjoint engine: both parts of a hypergradient, and a solve that can be differentiated."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from .._trees import negative
from .._types import PyTree
from ..solvers._definite import traits
from ..solvers._solve import prepare
from ._checks import Solver
from ._inner import InnerMinimum

_WARM = (
    "A hypergradient with a warm_start has no derivatives, since a truncated solve from it is not "
    "linear: leave warm_start out where you differentiate it."
)


class RESULTS(eqx.Enumeration):
    """How an adjoint solve ended. Print one, or index with it, for its words."""

    successful = ""
    diverged = (
        "The solve for the adjoint diverged. Away from a minimum of the inner loss its Hessian can "
        "be indefinite: minimize further, add damping, or pass GaussNewton(outputs, loss) as the "
        "inner loss. Lower learning_rate of Adam, step_size of Neumann, rtol of the solver in Dual."
    )


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


class Parts(eqx.Module):
    """What `differentiate` finds: the outer loss and its aux, both parts, v, and its statistics."""

    value: Scalar
    aux: Any
    direct: PyTree
    implicit: PyTree
    adjoint: PyTree
    stats: dict[str, Array]


def differentiate(
    outer: Callable[[PyTree, PyTree], tuple[Scalar, Any]],
    cross: Callable[[PyTree, PyTree], PyTree],
    theta: PyTree,
    phi: PyTree,
    solve: Callable[[PyTree], tuple[PyTree, dict[str, Array]]],
) -> Parts:
    """dL_o/dφ = ∂L_o/∂φ − ∂/∂φ ⟨∂L_i/∂θ, v⟩ with H v = ∂L_o/∂θ (paper, equation 1).

    φ is what is differentiated in: the outer parameters, or fewer numbers that they reach the
    losses by, of which the caller pulls the cotangents back.

    **Arguments:**

    - `outer`: (θ, φ) ↦ (L_o, aux).
    - `cross`: (φ, v) ↦ ∂/∂φ ⟨∂L_i/∂θ, v⟩, θ and v held fixed.
    - `solve`: g ↦ H⁻¹ g and its statistics.
    """
    both = eqx.filter_value_and_grad(lambda at: outer(*at), has_aux=True)
    (value, aux), (g, direct) = both((theta, phi))
    v, stats = solve(g)
    return Parts(value, aux, direct, negative(cross(phi, v)), v, stats)


def solve_adjoint(
    at: InnerMinimum,
    theta: PyTree,
    g: PyTree,
    *,
    solver: Solver,
    damping: float | Scalar,
    options: dict[str, Any],
    strict: bool = False,
    throw: bool = False,
) -> tuple[PyTree, dict[str, Array]]:
    """v = (H + damping)⁻¹ g and its statistics, differentiable any number of times.

    Derivatives are solves with the same solver, which lineax's own would not be for operators
    without a transpose rule, and never raise. `strict` makes a v that diverged NaN.

    With a start `y0` there are no derivatives: a truncated solve that starts elsewhere than at zero
    is not linear in its right-hand side, and they would be wrong without a word.
    """
    operator = at.curvature(theta, damping)

    def solve(_: Callable[[PyTree], PyTree], b: PyTree) -> tuple[PyTree, dict[str, Array]]:
        v, stats = prepare(operator, solver, options).solve(b)
        diverged = stats["diverged"]
        stats["converged"] = stats["converged"] & ~diverged
        if strict:
            v = jax.tree.map(lambda x: jnp.where(diverged, jnp.nan, x), v)
        return (outcome(diverged).error_if(v, diverged) if throw else v), stats

    if "y0" in options and traits(solver).started:
        v, stats = solve(operator.mv, g)
        return eqxi.nondifferentiable(v, msg=_WARM), stats
    return jax.lax.custom_linear_solve(operator.mv, g, solve, symmetric=True, has_aux=True)


def outcome(diverged: Array) -> RESULTS:
    """The result code of an adjoint solve."""
    return RESULTS.where(diverged, RESULTS.diverged, RESULTS.successful)
