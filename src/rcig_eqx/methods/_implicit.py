"""The primal route: an inner optimizer, an inverse-Hessian solve, direct plus implicit gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .._backend import IMAGES_AT_ONCE, full_precision
from .._checks import check_flags, check_number
from .._coreset import Coreset
from .._losses import (
    SQUARED_ERROR,
    InnerLoss,
    OuterLoss,
    check_quadratic,
    is_quadratic,
    mse_loss,
    platt_loss,
)
from .._ridge import check_dtype
from .._subsample import partial_vjp
from .._trees import add
from ..bilevel import Hypergradient
from ..bilevel._engine import differentiate
from ..models import AbstractNetwork
from ..solvers import AbstractDescent, Adam
from ..solvers._adam import check_trend, rate_of, with_rate
from ..solvers._definite import advice, check_solver, traits
from ._inner import InnerProblem, Nodes
from ._method import (
    AbstractRegularizedMethod,
    History,
    accuracy,
    check_shared,
    clip_implicit,
    fields_of,
    first_short,
    over_support,
    support_vjp,
)
from ._search import find_rate
from ._solution import InnerSolution, did_as_asked, said

Solver = lx.AbstractLinearSolver[Any]


class Meeting(eqx.Module):
    """What the distilled set reaches the losses by, to be differentiated in: φ of the engine.

    - `nodes`, `tangents`: what is added to the nodes at θ_B, and to their tangent along v: zero.
    - `labels`, `log_temperature`: of all the inputs the set stands for.
    """

    nodes: Nodes
    tangents: Nodes
    labels: Float[Array, "n classes"]
    log_temperature: Float[Array, ""]


class Implicit(AbstractRegularizedMethod):
    """Direct plus implicit gradient after an inner optimization (paper, sections 3.1 to 3.4).

    `rcig_paper`, `rig`, `cig` and `vig` are its ready forms. Learning rates follow the run.

    **Arguments:**

    - `linearized`, `reparameterized`: which of the four inner problems:

        |                  | `reparameterized` | head trained |
        |------------------|-------------------|--------------|
        | `linearized`     | RCIG              | CIG          |
        | not linearized   | RIG               | VIG          |

    - `inner`: what finds θ. `Adam`, or, where the inner loss is quadratic in θ, that of a
      linearized network with a `SquaredError`, any lineax solver.
    - `solver`: for v = H⁻¹ ∂L_o/∂θ: a lineax solver such as `ConjugateGradient`, `Neumann` or
      `Adam`; where the inner loss is quadratic also [`Dual`][rcig_eqx.solvers.Dual]. Of any other,
      H is taken where `inner` ended.
    - `l2_rate`, `outer_loss`, `subset`, `margin`: as in [`Rcig`][rcig_eqx.methods.Rcig].
    - `damping`: added to H's diagonal.
    - `gauss_newton`: whether H is the Gauss–Newton matrix instead of the Hessian. A network that
      is not linearized has an indefinite Hessian away from its minimum.
    - `dtype`: the precision of the ridge solve, where the head is solved for.
    - `clip`: limit the implicit gradient to the direct one's norm, as
      `clip_implicit`.
    - `inner_loss`: a [`SquaredError`][rcig_eqx.SquaredError], or, where the head is trained, any
      function `(predictions [n classes], labels [n classes]) -> scalar` that is smooth and convex
      in the predictions; λ/2 ‖θ‖² is added. Its type alone decides what is quadratic.
    - `below_largest`: Adam's rates that are `None` are searched for before a run (appendix C): the
      largest at which the losses fall at every step, by doubling and backing off by a sixth at a
      time, × `below_largest`. The paper has no such factor, which is 1; the authors' code, which
      steps up by a fifth and takes 0.84 of the first rate that fails, ends a fifth to three
      quarters above this default.
    - `shrink`: what a rate is multiplied by after a step whose descent ended above its start
      (paper, appendix C), from `tune` on.

    The statistics are `accuracy`; `iterations` and `residual` of the inverse-Hessian solve;
    `inner_iterations`, and `inner_residual`, the norm of the last inner gradient taken relative to
    the first; `inner_converged`, and `converged`, whether both solvers did what was asked of them.
    Adam adds whether its descent ended above its start or was monotone: `inner_diverged`,
    `inner_monotone`, `solver_diverged`, `solver_monotone`; and a Neumann series its
    `step_times_curvature`, which must be below 2.
    """

    linearized: bool = eqx.field(static=True, default=True)
    reparameterized: bool = eqx.field(static=True, default=True)
    inner: Solver = Adam()
    solver: Solver = Adam()
    l2_rate: float | Scalar = 5e-4
    outer_loss: OuterLoss = platt_loss
    damping: float = 0.0
    gauss_newton: bool = eqx.field(static=True, default=False)
    dtype: DTypeLike | None = eqx.field(static=True, default=None)
    subset: int | None = eqx.field(static=True, default=None)
    clip: bool = eqx.field(static=True, default=False)
    margin: bool = eqx.field(static=True, default=False)
    inner_loss: InnerLoss = SQUARED_ERROR
    below_largest: float = eqx.field(static=True, default=0.7)
    shrink: float = eqx.field(static=True, default=0.9)

    def __check_init__(self):
        flags = ("linearized", "reparameterized", "gauss_newton", "clip")
        check_flags(**{name: getattr(self, name) for name in flags})
        check_shared(self)
        if self.reparameterized:
            check_quadratic(self.inner_loss, "a reparameterized method solves for the head")
        quadratic = self.linearized and is_quadratic(self.inner_loss)
        check_solvers(self.inner, self.solver, quadratic=quadratic)
        check_number("damping", self.damping, lambda d: d >= 0, "a number of at least 0")
        if self.clip and not self.reparameterized:
            raise ValueError(
                "clip=True limits the implicit gradient to the direct one, which is zero where "
                "the head is trained (cig and vig): leave clip out."
            )
        if self.dtype is not None and not self.reparameterized:
            raise ValueError(
                "dtype is the precision of the head's ridge solve, and this method (cig, vig) "
                "trains the head: leave dtype out."
            )
        check_number("below_largest", self.below_largest, lambda b: 0 < b <= 1, "in (0, 1]")
        check_number("shrink", self.shrink, lambda factor: 0 < factor <= 1, "in (0, 1]")
        check_trend("inner", self.inner)
        check_trend("solver", self.solver)

    def problem(self, model: AbstractNetwork, coreset: Coreset) -> InnerProblem:
        """The inner problem that a distilled set poses to a network."""
        loss = over_support(self.inner_loss, coreset)
        forms = self.linearized, self.reparameterized
        return InnerProblem(model, *forms, self.l2_rate, self.dtype, loss)

    @property
    def linear_in_labels(self) -> bool:
        return self.linearized and is_quadratic(self.inner_loss)

    @property
    def head_l2_rate(self) -> float | Scalar | None:
        return self.l2_rate if self.reparameterized else None

    def check(self, coreset, batch_size):
        check_dtype(self.dtype)
        AbstractRegularizedMethod.check(self, coreset, batch_size)

    @full_precision
    def through(self, model, coreset, inputs, targets, /, chosen=None):
        problem = self.problem(model, coreset)
        (X_S, y_S), pull_back = support_vjp(coreset)
        at = InnerSolution.of(problem, X_S, y_S, self.inner, self.gauss_newton)
        theta_B = at.theta[0]
        at_T = problem.expand(inputs)

        def outer(theta: PyTree, phi: Meeting) -> tuple[Scalar, Array]:
            nodes = add(at.at_S(theta[0]), phi.nodes)
            f_T = problem.outputs(theta, nodes, phi.labels, at_T)
            return self.outer_loss(f_T, targets, phi.log_temperature), f_T

        def slope(phi: Meeting, v: PyTree) -> Scalar:
            nodes, tangents = problem.along(at.at_S, theta_B, v[0])

            def inner(theta: PyTree, nodes: Nodes) -> Scalar:
                return problem.loss(theta, nodes, phi.labels)

            moved = (at.theta, add(nodes, phi.nodes)), (v, add(tangents, phi.tangents))
            return jax.jvp(inner, *moved)[1]

        zero = problem.no_nodes(y_S)
        parts = differentiate(
            outer,
            jax.grad(slope),
            at.theta,
            Meeting(zero, zero, y_S, coreset.log_temperature),
            lambda g: at.inverse(self.solver, g, self.damping),
        )

        def nodes_at(X: Array) -> tuple[Nodes, Nodes]:
            return problem.along(problem.expand(X), theta_B, parts.adjoint[0])

        _, to_inputs = partial_vjp(nodes_at, X_S, chosen, held=IMAGES_AT_ONCE)

        def gradient_of(bar: Meeting) -> Coreset:
            tangents = add(bar.tangents, zero)  # what is no constant to the compiler
            return pull_back(to_inputs((bar.nodes, tangents)), bar.labels, bar.log_temperature)

        if self.clip:
            direct, implicit = gradient_of(parts.direct), gradient_of(parts.implicit)
            gradient = add(direct, clip_implicit(direct, implicit))
        else:  # both at once: half the passes
            gradient = gradient_of(add(parts.direct, parts.implicit))
        stats = at.stats | said("solver_", parts.stats) | {"accuracy": accuracy(parts.aux, targets)}
        if "step_times_curvature" in parts.stats:
            stats["step_times_curvature"] = parts.stats["step_times_curvature"]
        stats["inner_converged"] = at.converged
        stats["converged"] = at.converged & did_as_asked(self.solver, parts.stats)
        return Hypergradient(parts.value, gradient, stats)

    @property
    def adapts(self) -> bool:
        return True

    @full_precision
    def tune(self, model, coreset, inputs, targets, /):
        problem = self.problem(model, coreset)
        X_S, y_S = coreset.support()

        def inner_at(rate: Any) -> InnerSolution:
            inner = with_rate(self.inner, rate)
            return InnerSolution.of(problem, X_S, y_S, inner, self.gauss_newton)

        inner_rate, solver_rate = rate_of(self.inner), rate_of(self.solver)
        if inner_rate is None:
            largest = find_rate(lambda rate: inner_at(rate).stats["inner_monotone"], 1e-5)
            inner_rate = self.below_largest * largest
        if solver_rate is None:
            at, at_T = inner_at(inner_rate), problem.expand(inputs)

            def outer(theta: PyTree) -> Scalar:
                f_T = problem.outputs(theta, at.at_S(theta[0]), y_S, at_T)
                return self.outer_loss(f_T, targets, coreset.log_temperature)

            g_T = jax.grad(outer)(at.theta)

            def monotone(rate: Array) -> Bool[Array, ""]:
                return at.inverse(with_rate(self.solver, rate), g_T, self.damping)[1]["monotone"]

            solver_rate = self.below_largest * find_rate(monotone, 5e-5)
        return self._with_rates(inner_rate, solver_rate)

    def adapt(self, stats):
        def next_rate(name: str, solver: Solver) -> Any:
            rate, diverged = rate_of(solver), stats.get(f"{name}_diverged", False)
            if not isinstance(rate, jax.Array):  # what was never tuned keeps its structure
                return None
            return rate * jnp.where(diverged, self.shrink, 1.0).astype(rate.dtype)

        return self._with_rates(next_rate("inner", self.inner), next_rate("solver", self.solver))

    def _with_rates(self, *rates: Any) -> "Implicit":
        solvers = self.inner, self.solver
        new = [s if r is None else with_rate(s, r) for s, r in zip(solvers, rates, strict=True)]
        return eqx.tree_at(lambda m: (m.inner, m.solver), self, tuple(new))

    def advice(self, history: History) -> str:
        short = first_short(history)
        return advice(self.solver if short.get("inner_converged", 1.0) else self.inner, short)

    def warnings(self, history: History) -> list[str]:
        """Of descents that ended above their start, and of a close solve far from the minimum."""
        found = []
        for name, words in (("inner", "inner"), ("solver", "inverse-Hessian")):
            diverged = history.get(f"{name}_diverged", [])
            if sum(diverged) > len(diverged) / 3:
                found.append(
                    f"The {words} descent ended above its start in {sum(diverged):.0f} of "
                    f"{len(diverged)} steps: its hypergradients are of little worth. Give the "
                    f"method a lower rate, as in {name}=Adam(1e-4)."
                )
        return found + self._magnified(history)

    def _magnified(self, history: History) -> list[str]:
        """Where the head is solved for, the inner problem leaves nothing in its directions."""
        if self.reparameterized or not {"residual", "inner_residual"} <= history.keys():
            return []
        both = np.asarray([history["inner_residual"], history["residual"]])
        both = both[:, (both[0] > 0) & np.isfinite(both).all(0)]  # zero in a head-only step
        if not both.size:
            return []
        inner, solve = np.median(both, 1)
        # Of a quadratic the gradient is worth little above the first; others bear more.
        if not (inner > (2e-4 if self.linear_in_labels else 1e-2) and solve < 0.1):
            return []
        return [
            f"H⁻¹g was solved to {solve:.0e} where the inner problem was to {inner:.0e} (median "
            "relative residuals). With a trained head (cig, vig) a close solve magnifies what the "
            "inner one leaves, up to a gradient of the wrong sign. Bring the inner one below 1e-4: "
            "inner=Dual(lineax.Cholesky()) or Dual(ConjugateGradient(1e-4)) for cig with a "
            "SquaredError, more steps of Adam else; or leave both short, as solver=Adam() does."
        ]


def check_solvers(inner: Solver, solver: Solver, *, quadratic: bool) -> None:
    """Raise `ValueError` for a solver that does not fit the inner problem."""
    check_solver("inner", inner)
    check_solver("solver", solver)
    if not quadratic and not isinstance(inner, AbstractDescent):
        raise ValueError(
            f"inner is {type(inner).__name__}, but the inner loss of a network that is not "
            "linearized, or one that is no SquaredError, is not quadratic: pass Adam()."
        )
    if traits(solver).dual and not quadratic:
        raise ValueError(
            f"solver is {type(solver).__name__}, which solves only the linearized problem "
            "of a SquaredError: pass another, such as ConjugateGradient()."
        )


@fields_of(Implicit)
def rcig_paper(**changed: Any) -> Implicit:
    """RCIG as in the paper: linearized, head solved for, 20 and 20 Adam steps (Algorithm 1).

    Adam's rates are 0.7 of the largest, which are the paper's: pass `below_largest=1.0` for those,
    or take `presets.paper()`, which does. `changed` are fields of
    [`Implicit`][rcig_eqx.methods.Implicit], such as `inner=Adam(steps=50)` or `clip=True`.
    """
    return Implicit(linearized=True, reparameterized=True, **changed)


@fields_of(Implicit)
def rig(**changed: Any) -> Implicit:
    """RCIG without linearization: head solved for, ordinary training dynamics (Table 1).

    The features move with the body, and the L2 term is of how far it has moved. The authors' code
    keeps the features of the start, and adds how much the outputs of the start's head have changed.
    """
    return Implicit(linearized=False, reparameterized=True, **changed)


@fields_of(Implicit)
def cig(*, outer_loss: OuterLoss = mse_loss, **changed: Any) -> Implicit:
    """RCIG with the head trained instead of solved for (section 3.2, Table 1).

    Its outer loss is the mean-squared error: Platt's comes with the head's solution (section 3.3).
    """
    return Implicit(linearized=True, reparameterized=False, outer_loss=outer_loss, **changed)


@fields_of(Implicit)
def vig(*, outer_loss: OuterLoss = mse_loss, **changed: Any) -> Implicit:
    """Plain implicit gradients: ordinary dynamics, all parameters trained (section 3.1).

    Its outer loss is the mean-squared error, as [`cig`][rcig_eqx.methods.cig]'s.
    """
    return Implicit(linearized=False, reparameterized=False, outer_loss=outer_loss, **changed)
