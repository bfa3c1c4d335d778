"""The primal route: an inner optimiser, an inverse-Hessian solve, direct plus implicit gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Scalar

from .._coreset import Coreset
from .._hypergradient import Hypergradient, implicit_parts, solve_stats
from .._linearize import linearize
from .._losses import inner_loss, platt_loss
from ..models import AbstractNetwork
from ..solvers import (
    AbstractDualSolver,
    Adam,
    adam_descent,
    gauss_newton_operator,
    hessian_operator,
)
from ._inner import Expansion, InnerProblem
from ._method import OuterLoss, accuracy, clip_implicit

Solver = lx.AbstractLinearSolver | AbstractDualSolver


def implicit_hypergradient(
    model: AbstractNetwork,
    coreset: Coreset,
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b classes"],
    *,
    linearized: bool = True,
    reparameterized: bool = True,
    inner: Solver,
    solver: Solver,
    l2_rate: float = 5e-4,
    outer_loss: OuterLoss = platt_loss,
    damping: float = 0.0,
    gauss_newton: bool = False,
    dtype: DTypeLike | None = None,
    clip: bool = False,
) -> Hypergradient:
    """Direct plus implicit gradient after an inner optimisation (paper, sections 3.1 to 3.4).

    **Arguments:**

    - `model`, `coreset`, `images`, `targets`, `l2_rate`, `outer_loss`: as in
      [`exact_hypergradient`][rcig_eqx.exact_hypergradient].
    - `linearized`, `reparameterized`: which of the four inner problems; see
      [`InnerProblem`][rcig_eqx.methods.InnerProblem].
    - `inner`: what finds θ. `Adam`, or, of a linearised network, whose inner loss is quadratic, any
      solver that `solver` may be.
    - `solver`: for v = H⁻¹ ∂L_o/∂θ: a lineax solver such as `ConjugateGradient`, `Neumann`, `Adam`
      or `Nystrom`; of a linearised network also `DualCholesky` or `DualCG`, which solve exactly.
    - `damping`: added to H's diagonal.
    - `gauss_newton`: whether H is the Gauss–Newton matrix instead of the Hessian. A network that
      is not linearised has an indefinite Hessian away from its minimum.
    - `dtype`: the precision of the ridge solve.
    - `clip`: limit the implicit gradient to the direct one's norm, as
      [`clip_implicit`][rcig_eqx.methods.clip_implicit].

    **Returns:** a `Hypergradient` with `accuracy`, `iterations`, `residual` and `converged` of the
    inverse-Hessian solve, and `inner_residual`, the relative norm of the last inner gradient taken.
    Adam adds whether its descent ended above its start or was monotone: `inner_diverged`,
    `inner_monotone`, `solver_diverged`, `solver_monotone`.
    """
    check_solvers(inner, solver, linearized=linearized, damping=damping)
    problem = InnerProblem(model, linearized, reparameterized, l2_rate, dtype)
    X_S, y_S = coreset.support()
    at_S, at_T = problem.expand(X_S), problem.expand(images)

    def inner_at(theta: PyTree, psi: Coreset) -> Scalar:
        X, y = psi.support()
        return problem.loss(theta, problem.expand(X), y)

    def outer_at(theta: PyTree, psi: Coreset) -> tuple[Scalar, Array]:
        return problem.outer(theta, psi, at_T, targets, outer_loss)

    theta, inner_stats = inner_solution(problem, at_S, X_S, y_S, inner)

    def inverse(g_T: PyTree) -> lx.Solution:
        if isinstance(solver, AbstractDualSolver):
            return _dual_inverse(problem, X_S, solver, g_T)
        operator = curvature(problem, at_S, y_S, theta, damping, gauss_newton)
        return lx.linear_solve(operator, g_T, solver, throw=False)

    parts = implicit_parts(outer_at, inner_at, theta, coreset, inverse)
    implicit = clip_implicit(parts.direct, parts.implicit) if clip else parts.implicit
    stats = {"accuracy": accuracy(parts.aux, targets)}
    stats |= inner_stats | solve_stats(parts.solution) | _descent_stats("solver", parts.solution)
    return Hypergradient(parts.value, jax.tree.map(jnp.add, parts.direct, implicit), stats)


def curvature(
    problem: InnerProblem,
    at_S: Expansion,
    y_S: Float[Array, "n classes"],
    theta: PyTree,
    damping: float = 0.0,
    gauss_newton: bool = False,
) -> lx.AbstractLinearOperator:
    """The inner loss's Hessian or Gauss–Newton matrix at θ."""
    if not gauss_newton:
        loss = lambda theta: problem.loss(theta, at_S, y_S)  # noqa: E731
        return hessian_operator(loss, theta, damping=damping)

    def convex(residuals: tuple[Array, PyTree]) -> Scalar:
        return inner_loss(residuals[0], y_S, residuals[1], problem.l2_rate * len(y_S))

    outputs = lambda theta: problem.residuals(theta, at_S, y_S)  # noqa: E731
    return gauss_newton_operator(outputs, convex, theta, damping=damping)


def inner_solution(
    problem: InnerProblem,
    at_S: Expansion,
    X_S: Float[Array, "n h w c"],
    y_S: Float[Array, "n classes"],
    inner: Solver,
) -> tuple[PyTree, dict[str, Array]]:
    """θ as the inner solver finds it, and how that went."""
    start = problem.start()
    loss = lambda theta: problem.loss(theta, at_S, y_S)  # noqa: E731
    if isinstance(inner, AbstractDualSolver):
        at, system = _dual_system(problem, X_S, inner)
        alpha = system.solve(y_S)
        return problem.restrict(at.vjp(alpha.value)), {"inner_residual": alpha.residual}
    if not problem.linearized:
        assert isinstance(inner, Adam)
        return _descend(loss, start, inner)
    downhill = jax.tree.map(jnp.negative, jax.grad(loss)(start))
    operator = curvature(problem, at_S, y_S, start)
    solution = lx.linear_solve(operator, downhill, inner, throw=False)
    stats = {"inner_residual": solution.stats["residual"]} | _descent_stats("inner", solution)
    return solution.value, stats


def _descend(
    loss: Callable[[PyTree], Scalar], start: PyTree, inner: Adam
) -> tuple[PyTree, dict[str, Array]]:
    """Adam on an inner loss that is not quadratic."""
    if inner.steps == 0:
        return start, {"inner_residual": jnp.ones(())}
    descent = adam_descent(jax.value_and_grad(loss), start, inner.steps, inner.rate())
    stats = {
        "inner_residual": descent.residual,
        "inner_diverged": descent.diverged,
        "inner_monotone": descent.monotone,
    }
    return descent.value, stats


def _descent_stats(name: str, solution: lx.Solution) -> dict[str, Array]:
    kinds = ("diverged", "monotone")
    return {f"{name}_{kind}": solution.stats[kind] for kind in kinds if kind in solution.stats}


def _dual_system(problem: InnerProblem, X_S: Array, solver: AbstractDualSolver):
    at = linearize(problem.model, X_S)
    return at, solver.prepare(problem.model, X_S, at, problem.l2_rate * len(X_S))


def _dual_inverse(
    problem: InnerProblem, X_S: Array, solver: AbstractDualSolver, g: PyTree
) -> lx.Solution:
    """v = (g − Jᵀβ)/λ with (J Jᵀ + λI) β = J g, by the Woodbury identity.

    Of the reparameterised problem, whose Hessian is the Schur complement of the head's block, v is
    the body's part for a g with nothing in the head.
    """
    at, system = _dual_system(problem, X_S, solver)
    padded = problem.pad(g)
    beta = system.solve(at.jvp(padded))
    rest = jax.tree.map(jnp.subtract, padded, at.vjp(beta.value))
    v = jax.tree.map(lambda x: x / (problem.l2_rate * len(X_S)), rest)
    stats = {"num_steps": beta.num_steps, "residual": beta.residual}
    return lx.Solution(problem.restrict(v), beta.result, stats, None)


def check_solvers(inner: Solver, solver: Solver, *, linearized: bool, damping: float) -> None:
    """Raise `ValueError` for a solver that does not fit the inner problem."""
    kinds = (lx.AbstractLinearSolver, AbstractDualSolver)
    for name, value in (("inner", inner), ("solver", solver)):
        if not isinstance(value, kinds):
            raise ValueError(f"{name} is {value!r}: pass a value of rcig_eqx.solvers, as Adam().")
    if not linearized and not isinstance(inner, Adam):
        raise ValueError(
            f"inner is {type(inner).__name__}, but the inner loss of a network that is not "
            "linearised is not quadratic: pass Adam()."
        )
    if isinstance(solver, AbstractDualSolver) and (damping or not linearized):
        raise ValueError(
            f"solver is {type(solver).__name__}, which solves the linearised problem without "
            "damping alone: pass another, such as ConjugateGradient()."
        )
