"""Where the inner solver of the primal route ended, and the curvature there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .._linearize import Linearization, linearize
from .._trees import negative
from ..operators import NTK, DualizableOperator, gauss_newton_operator, hessian_operator
from ..operators._hessian import damped
from ..solvers import AbstractDescent
from ..solvers._definite import traits
from ..solvers._dual import alike
from ..solvers._solve import Prepared, prepare
from ._inner import Expansion, InnerProblem


@dataclasses.dataclass
class InnerSolution:
    """The inner variable that an inner solver found. It lives inside one trace.

    - `at_S`: the network at the distilled set.
    - `theta`: the inner variable.
    - `stats`: how the search went, under names that begin with `inner_`.
    - `converged`: whether the solver did what was asked of it.
    - `curvature`: the undamped Hessian or Gauss–Newton operator.
    - `prepared`: the inner solver with it, where the inner problem is one linear system.
    """

    problem: InnerProblem
    X_S: Float[Array, "n *shape"]
    l2: float | Scalar
    linear: Linearization | None
    at_S: Expansion
    curvature: lx.AbstractLinearOperator
    prepared: Prepared | None
    theta: PyTree
    stats: dict[str, Array]
    converged: Bool[Array, ""]

    @classmethod
    def of(
        cls,
        problem: InnerProblem,
        X_S: Float[Array, "n *shape"],
        y_S: Float[Array, "n classes"],
        inner: lx.AbstractLinearSolver[Any],
        gauss_newton: bool,
    ) -> "InnerSolution":
        """Solve the inner problem that a distilled set poses."""
        linear = linearize(problem.model, X_S) if problem.linearized else None
        at_S, start = problem.linear(linear) if linear else problem.expand(X_S), problem.start()
        place = (problem, X_S, problem.l2_rate * len(y_S), linear, at_S)

        def loss(theta: PyTree) -> Scalar:
            return problem.loss(theta, at_S(theta[0]), y_S)

        def residuals(theta: PyTree) -> PyTree:
            return problem.residuals(theta, at_S(theta[0]), y_S)

        def curvature(theta: PyTree) -> lx.AbstractLinearOperator:
            if not gauss_newton:
                return hessian_operator(loss, theta)
            return gauss_newton_operator(residuals, lambda r: problem.loss_of(r, y_S), theta)

        if not problem.quadratic:
            assert isinstance(inner, AbstractDescent)  # as check_solvers sees to
            if inner.steps == 0:
                return cls(*place, curvature(start), None, start, {}, jnp.asarray(True))
            descent = inner.descend(jax.value_and_grad(loss), start)
            stats = {
                "inner_iterations": jnp.asarray(inner.steps, jnp.int32),
                "inner_residual": descent.residual,
                "inner_diverged": descent.diverged,
                "inner_monotone": descent.monotone,
            }
            theta, converged = descent.value, jnp.isfinite(descent.residual)
            return cls(*place, curvature(theta), None, theta, stats, converged)
        # Of a quadratic the curvature is the same everywhere, and the minimum one solve away.
        at = cls(*place, curvature(start), None, start, {}, jnp.asarray(True))
        prepared = prepare(at.operator(), inner, {"targets": y_S})
        theta, stats = prepared.solve(negative(jax.grad(loss)(start)))
        return dataclasses.replace(
            at,
            prepared=prepared,
            theta=theta,
            stats=said("inner_", stats),
            converged=did_as_asked(inner, stats),
        )

    def operator(self, damping: float = 0.0) -> lx.AbstractLinearOperator:
        """The damped curvature; that of a quadratic knows its dual.

        The reparameterized problem's is the Schur complement of the head's block, and v the body's
        part of the whole problem's for a g with nothing in the head. The body alone is damped
        there, so that the head's part of J Jᵀ counts (λ + damping)/λ times.
        """
        problem, ridge = self.problem, self.l2 + damping
        primal = damped(self.curvature.mv, self.theta, damping) if damping else self.curvature
        if not problem.quadratic:
            return primal

        def kernel() -> NTK:
            head_weight = ridge / self.l2 if problem.reparameterized and damping else None
            return NTK(
                problem.model,
                self.X_S,
                ridge,
                weights=problem.weights,
                head_weight=head_weight,
                linearization=self.linear,
            )

        return DualizableOperator(primal, kernel, problem.pad, problem.restrict)

    def inverse(
        self, solver: lx.AbstractLinearSolver[Any], g: PyTree, damping: float
    ) -> tuple[PyTree, dict[str, Array]]:
        """v = (H + damping)⁻¹ g and its statistics; a factorization of `inner` serves again."""
        prepared = self.prepared
        if prepared is None or damping or not alike(prepared.solver, solver):
            prepared = prepare(self.operator(damping), solver)
        return dataclasses.replace(prepared, options={}).solve(g)


def said(prefix: str, stats: dict[str, Array]) -> dict[str, Array]:
    """The statistics of a solve that a method passes on, a descent's two flags under a prefix."""
    flags = ("diverged", "monotone") if "monotone" in stats else ()
    own = prefix if prefix == "inner_" else ""
    names = {own + name: stats[name] for name in ("iterations", "residual")}
    return names | {prefix + name: stats[name] for name in flags}


def did_as_asked(solver: Any, stats: dict[str, Array]) -> Bool[Array, ""]:
    """Whether a solve reached its tolerance, or took its steps and stayed finite."""
    if not traits(solver).truncated:
        return stats["converged"]
    return stats["converged"] | jnp.isfinite(stats["residual"])
