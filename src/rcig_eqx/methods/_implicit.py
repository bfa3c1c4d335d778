"""The primal route: an inner optimiser, an inverse-Hessian solve, direct plus implicit gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._backend import IMAGES_AT_ONCE, full_precision, zeros
from .._bilevel import Solver, solve_stats
from .._checks import check_number
from .._coreset import Coreset
from .._hypergradient import Hypergradient
from .._linearize import Linearization, linearize
from .._losses import SQUARED_ERROR, InnerLoss, platt_loss
from .._subsample import partial_vjp
from ..models import AbstractNetwork
from ..solvers import (
    AbstractDualSolver,
    Adam,
    DualSystem,
    Nystrom,
    adam_descent,
    damped,
    gauss_newton_operator,
    hessian_operator,
)
from ..solvers._definite import residual_of
from ._inner import Expansion, InnerProblem, Nodes
from ._method import OuterLoss, accuracy, clip_implicit, is_quadratic, over_support


@full_precision
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
    l2_rate: float | Scalar = 5e-4,
    inner_loss: InnerLoss = SQUARED_ERROR,
    outer_loss: OuterLoss = platt_loss,
    damping: float = 0.0,
    gauss_newton: bool = False,
    dtype: DTypeLike | None = None,
    clip: bool = False,
    chosen: Int[Array, " m"] | None = None,
) -> Hypergradient:
    """Direct plus implicit gradient after an inner optimisation (paper, sections 3.1 to 3.4).

    **Arguments:**

    - `model`, `coreset`, `images`, `targets`, `l2_rate`, `outer_loss`: as in
      [`exact_hypergradient`][rcig_eqx.exact_hypergradient].
    - `linearized`, `reparameterized`: which of the four inner problems; see
      [`InnerProblem`][rcig_eqx.methods.InnerProblem].
    - `inner`: what finds θ. `Adam`, or, where the inner loss is quadratic in θ, that of a
      linearised network with a `SquaredError`, any solver that `solver` may be.
    - `solver`: for v = H⁻¹ ∂L_o/∂θ: a lineax solver such as `ConjugateGradient`, `Neumann`, `Adam`
      or `Nystrom`; where the inner loss is quadratic also `DualCholesky` or `DualCG`. Of any
      other, H is taken where `inner` ended.
    - `inner_loss`: a [`SquaredError`][rcig_eqx.SquaredError], or, where the head is trained, any
      function `(predictions [n classes], labels [n classes]) -> scalar` that is smooth and convex
      in the predictions; λ/2 ‖θ‖² is added. Its type alone decides what is quadratic.
    - `damping`: added to H's diagonal.
    - `gauss_newton`: whether H is the Gauss–Newton matrix instead of the Hessian. A network that
      is not linearised has an indefinite Hessian away from its minimum.
    - `dtype`: the precision of the ridge solve, where the head is solved for.
    - `clip`: limit the implicit gradient to the direct one's norm, as
      [`clip_implicit`][rcig_eqx.methods.clip_implicit].
    - `chosen`: as in [`exact_hypergradient`][rcig_eqx.exact_hypergradient].

    **Returns:** a `Hypergradient` with `accuracy`; `iterations` and `residual` of the
    inverse-Hessian solve; `inner_iterations`, and `inner_residual`, the norm of the last inner
    gradient taken relative to the first; and `converged`, whether both solvers did what was asked
    of them. Of Adam so many steps are asked: how far they led is told by its residual alone. A dual
    solver's residuals are those of its system of n·C unknowns, but where the head is trained
    `residual` is v's own, and one above 1, which v = 0 has, is a failure. Adam adds whether its
    descent ended above its start or was monotone: `inner_diverged`, `inner_monotone`,
    `solver_diverged`, `solver_monotone`; and a Neumann series its `step_times_curvature`, which
    must be below 2.
    """
    quadratic = linearized and is_quadratic(inner_loss)
    check_solvers(inner, solver, quadratic=quadratic, damping=damping)
    check_clip(clip, reparameterized)
    loss_S = over_support(inner_loss, coreset) if is_quadratic(inner_loss) else inner_loss
    problem = InnerProblem(model, linearized, reparameterized, l2_rate, dtype, loss_S)
    (X_S, y_S), mirror_transpose = jax.vjp(lambda c: c.support(), coreset)
    at = InnerSolution.of(problem, X_S, y_S, inner, gauss_newton)
    theta, theta_B = at.theta, at.theta[0]
    at_T = problem.expand(images)

    def outer_at(theta, nodes, y, temperature) -> tuple[Scalar, Array]:
        f_T = problem.outputs(theta, nodes, y, at_T)
        return outer_loss(f_T, targets, temperature), f_T

    nodes, nodes_transpose = jax.vjp(at.at_S, theta_B)
    (value, f_T), (g_T, nodes_bar, y_bar, temperature_bar) = jax.value_and_grad(
        outer_at, argnums=(0, 1, 2, 3), has_aux=True
    )(theta, nodes, y_S, coreset.log_temperature)
    if reparameterized:  # else the outer loss knows θ alone
        (through_nodes,) = nodes_transpose(nodes_bar)
        g_T = (jax.tree.map(jnp.add, g_T[0], through_nodes), g_T[1])
    solution = at.inverse(solver, g_T, damping)
    v = solution.value

    def slope(nodes, nodes_dot, y) -> Scalar:
        """⟨∂L_i/∂θ, v⟩, given the nodes at θ_B and their tangent along v."""
        along = lambda theta, nodes: problem.loss(theta, nodes, y)  # noqa: E731
        return jax.jvp(along, (theta, nodes), (v, nodes_dot))[1]

    _, nodes_dot = problem.along(at.at_S, theta_B, v[0])
    slope_bars = jax.grad(slope, argnums=(0, 1, 2))(nodes, nodes_dot, y_S)
    *implicit_bar, implicit_y = jax.tree.map(jnp.negative, slope_bars)

    def nodes_at(X: Array) -> tuple[Nodes, Nodes]:
        return problem.along(problem.expand(X), theta_B, v[0])

    _, to_images = partial_vjp(nodes_at, X_S, chosen, held=IMAGES_AT_ONCE)

    def gradient_of(bars: tuple[Nodes, Nodes], y_bar: Array, temperature_bar: Array) -> Coreset:
        (gradient,) = mirror_transpose((to_images(bars), y_bar))
        return eqx.tree_at(lambda c: c.log_temperature, gradient, temperature_bar)

    if clip:
        direct = gradient_of((nodes_bar, zeros(nodes)), y_bar, temperature_bar)
        implicit = gradient_of(tuple(implicit_bar), implicit_y, jnp.zeros_like(temperature_bar))
        gradient = jax.tree.map(jnp.add, direct, clip_implicit(direct, implicit))
    else:  # both at once: half the passes
        bars = jax.tree.map(jnp.add, nodes_bar, implicit_bar[0]), implicit_bar[1]
        gradient = gradient_of(bars, y_bar + implicit_y, temperature_bar)
    stats = at.stats | solve_stats(solution) | _descent_stats("solver", solution)
    if "step_times_curvature" in solution.stats:
        stats["step_times_curvature"] = solution.stats["step_times_curvature"]
    stats["converged"] = stats["converged"] & at.converged
    stats["accuracy"] = accuracy(f_T, targets)
    return Hypergradient(value, gradient, stats)


@dataclasses.dataclass
class InnerSolution:
    """Where the inner solver ended, and the inner Hessian there. It lives inside one trace.

    - `at_S`: the network at the distilled set.
    - `theta`: the inner variable.
    - `stats`: how the search went.
    - `converged`: whether the solver did what was asked of it.
    - `hessian`: the undamped Hessian or Gauss–Newton operator.
    - `dual`: a function from a dual solver and a damping to the linearisation and the system, made
      once each.
    """

    problem: InnerProblem
    l2: float | Scalar
    at_S: Expansion
    theta: PyTree
    stats: dict[str, Array]
    converged: Bool[Array, ""]
    hessian: lx.AbstractLinearOperator
    dual: Callable[[AbstractDualSolver, float], tuple[Linearization, DualSystem]]

    @classmethod
    def of(
        cls,
        problem: InnerProblem,
        X_S: Float[Array, "n h w c"],
        y_S: Float[Array, "n classes"],
        inner: Solver,
        gauss_newton: bool,
    ) -> "InnerSolution":
        """Solve the inner problem that a distilled set poses."""
        l2 = problem.l2_rate * len(y_S)
        linear = linearize(problem.model, X_S) if problem.linearized else None
        at_S, start = problem.linear(linear) if linear else problem.expand(X_S), problem.start()
        loss = lambda theta: problem.loss(theta, at_S(theta[0]), y_S)  # noqa: E731
        systems: dict[Any, DualSystem] = {}

        def dual(solver: AbstractDualSolver, damping: float) -> tuple[Linearization, DualSystem]:
            assert linear  # as check_solvers sees to
            ridge = l2 + damping
            leaves, structure = jax.tree.flatten(solver)  # arrays have no hash
            wanted = (structure, *map(id, leaves), damping)
            if wanted not in systems:
                # Where the head is solved for, it is not damped.
                head_weight = ridge / l2 if problem.reparameterized and damping else None
                given = (problem.model, X_S, linear, ridge, problem.weights, head_weight)
                systems[wanted] = solver.prepare(*given)
            return linear, systems[wanted]

        def curvature(theta: PyTree) -> lx.AbstractLinearOperator:
            if not gauss_newton:
                return hessian_operator(loss, theta)
            outputs = lambda theta: problem.residuals(theta, at_S(theta[0]), y_S)  # noqa: E731
            convex = lambda r: problem.loss_of(r, y_S)  # noqa: E731
            return gauss_newton_operator(outputs, convex, theta)

        if not problem.quadratic:
            assert isinstance(inner, Adam)
            theta, stats, converged = _descend(loss, start, inner)
            return cls(problem, l2, at_S, theta, stats, converged, curvature(theta), dual)
        hessian = curvature(start)  # of a quadratic, the same everywhere
        if isinstance(inner, AbstractDualSolver):
            at, system = dual(inner, 0.0)
            alpha = system.solve(y_S, labels=True)
            theta = problem.restrict(at.vjp(alpha.value))
            stats = {"inner_iterations": alpha.num_steps, "inner_residual": alpha.residual}
            converged = alpha.converged
        else:
            downhill = jax.tree.map(jnp.negative, jax.grad(loss)(start))
            solution = _solve(hessian, downhill, inner, l2)
            theta, found = solution.value, solve_stats(solution)
            converged = found.pop("converged")
            stats = {f"inner_{name}": value for name, value in found.items()}
            stats |= _descent_stats("inner", solution)
        return cls(problem, l2, at_S, theta, stats, converged, hessian, dual)

    def inverse(self, solver: Solver, g: PyTree, damping: float) -> lx.Solution:
        """v = (H + damping)⁻¹ g.

        In the dual v = (g − Jᵀβ)/λ with (J Jᵀ + λI) β = J g, by the Woodbury identity; weights
        take the place of I as in `DualSystem`, and λ + damping that of λ. The reparameterised
        problem's Hessian is the Schur complement of the head's block, and its v the body's part of
        that for a g with nothing in the head; the body alone is damped there, so that the head's
        part of J Jᵀ counts (λ + damping)/λ times.
        """
        operator = damped(self.hessian.mv, self.theta, damping)
        if not isinstance(solver, AbstractDualSolver):
            return _solve(operator, g, solver, self.l2 + damping)
        at, system = self.dual(solver, damping)
        padded, ridge = self.problem.pad(g), self.l2 + damping
        beta = system.solve(at.jvp(padded))
        rest = jax.tree.map(jnp.subtract, padded, at.vjp(beta.value))
        v = self.problem.restrict(jax.tree.map(lambda x: x / ridge, rest))
        residual, result = beta.residual, beta.result
        if not self.problem.reparameterized:  # what β is short of is divided by λ in the head too
            residual = residual_of(operator, v, g)
            result = lx.RESULTS.where(residual <= 1, result, lx.RESULTS.breakdown)
        stats = {"num_steps": beta.num_steps, "residual": residual}
        return lx.Solution(v, result, stats, None)


def _descend(
    loss: Callable[[PyTree], Scalar], start: PyTree, inner: Adam
) -> tuple[PyTree, dict[str, Array], Bool[Array, ""]]:
    """Adam on an inner loss that is not quadratic."""
    if inner.steps == 0:
        return start, {}, jnp.asarray(True)
    descent = adam_descent(jax.value_and_grad(loss), start, inner.steps, inner.rate())
    stats = {
        "inner_iterations": jnp.asarray(inner.steps, jnp.int32),
        "inner_residual": descent.residual,
        "inner_diverged": descent.diverged,
        "inner_monotone": descent.monotone,
    }
    return descent.value, stats, jnp.isfinite(descent.residual)


def _solve(
    operator: lx.AbstractLinearOperator, g: PyTree, solver: Any, ridge: float | Scalar
) -> lx.Solution:
    """lineax's solution, its residual taken by one more product where the solver tells none.

    `ridge` is the L2 term and the damping in the operator.
    """
    if isinstance(solver, Nystrom) and solver.regularization is None:
        solver = dataclasses.replace(solver, regularization=ridge)
    solution = lx.linear_solve(operator, g, solver, throw=False)
    stats, result = solution.stats, solution.result
    if isinstance(solver, Adam):  # takes the steps it was asked for; its residual tells the rest
        capped = result == lx.RESULTS.max_steps_reached
        result = lx.RESULTS.where(capped, lx.RESULTS.successful, result)
    if "residual" not in stats:
        stats = stats | {"residual": residual_of(operator, solution.value, g)}
    return lx.Solution(solution.value, result, stats, solution.state)


def _descent_stats(name: str, solution: lx.Solution) -> dict[str, Array]:
    kinds = ("diverged", "monotone")
    return {f"{name}_{kind}": solution.stats[kind] for kind in kinds if kind in solution.stats}


def check_clip(clip: bool, reparameterized: bool) -> None:
    """Raise `ValueError` where there is no direct gradient to clip to."""
    if clip and not reparameterized:
        raise ValueError(
            "clip=True limits the implicit gradient to the direct one, which is zero where the "
            "head is trained (cig and vig): leave clip out."
        )


def check_solvers(inner: Solver, solver: Solver, *, quadratic: bool, damping: float) -> None:
    """Raise `ValueError` for a solver that does not fit the inner problem."""
    kinds = (lx.AbstractLinearSolver, AbstractDualSolver)
    for name, value in (("inner", inner), ("solver", solver)):
        if not isinstance(value, kinds):
            raise ValueError(f"{name} is {value!r}: pass a value of rcig_eqx.solvers, as Adam().")
    if not quadratic and not isinstance(inner, Adam):
        raise ValueError(
            f"inner is {type(inner).__name__}, but the inner loss of a network that is not "
            "linearised, or one that is no SquaredError, is not quadratic: pass Adam()."
        )
    check_number("damping", damping, lambda d: d >= 0, "a number of at least 0")
    if isinstance(solver, AbstractDualSolver) and not quadratic:
        raise ValueError(
            f"solver is {type(solver).__name__}, which solves only the linearised problem "
            "of a SquaredError: pass another, such as ConjugateGradient()."
        )
