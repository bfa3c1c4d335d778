"""The paper's method and its ablations, with the learning rates they need."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._backend import full_precision
from .._bilevel import Solver
from .._checks import check_counts, check_flags, check_number
from .._losses import SQUARED_ERROR, InnerLoss, mse_loss, platt_loss
from .._subsample import check_subset, choose
from ..solvers import Adam
from ._implicit import InnerSolution, check_clip, check_solvers, implicit_hypergradient
from ._inner import InnerProblem
from ._method import (
    AbstractAdaptiveMethod,
    OuterLoss,
    check_l2_rate,
    check_quadratic,
    is_quadratic,
    over_support,
    subtract_margin,
)


class RateRule(eqx.Module):
    """When Adam's learning rates change during a run.

    Every `window` steps: × `shrink` if the share of descents that ended above their start is at
    least `shrink_at`, else × `grow` if the share of monotone ones is at least `grow_at`.
    `solver` says whether the inverse-Hessian solver's rate follows the rule too.

    The default is the paper's: × 0.9 whenever a loss diverged (appendix C). A rule works from the
    method's `tune` on.
    """

    window: int = eqx.field(static=True, default=1)
    shrink: float = eqx.field(static=True, default=0.9)
    shrink_at: float = eqx.field(static=True, default=1.0)
    grow: float = eqx.field(static=True, default=1.0)
    grow_at: float = eqx.field(static=True, default=1.0)
    solver: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        check_counts(window=self.window)
        check_number("shrink", self.shrink, lambda factor: 0 < factor <= 1, "in (0, 1]")
        check_number("grow", self.grow, lambda factor: 1 <= factor < math.inf, "at least 1")
        for name in ("shrink_at", "grow_at"):
            check_number(name, getattr(self, name), lambda share: share >= 0, "a share, from 0 up")
        check_flags(solver=self.solver)


class Tally(eqx.Module):
    """Descents since the rule was last applied; inner first, then inverse-Hessian."""

    seen: Int[Array, ""]
    diverged: Int[Array, "2"]
    monotone: Int[Array, "2"]


class implicit(AbstractAdaptiveMethod):
    """A method of the primal route: `implicit_hypergradient` with rates that follow the run.

    `rcig_paper`, `rig`, `cig` and `vig` are its ready forms. The arguments are those of
    [`implicit_hypergradient`][rcig_eqx.methods.implicit_hypergradient]; besides, `subset` as in
    [`rcig`][rcig_eqx.methods.rcig]; `margin`: subtract the label margin from the outer loss; and
    `rule`: how learning rates change during a run. Rates that are `None` are searched for before
    it (appendix C): the largest at which the losses fall at every step, by doubling and backing
    off by a sixth at a time, × `below_largest`. The paper has no such factor, which is 1; the
    authors' code, which steps up by a fifth and takes 0.84 of the first rate that fails, ends a
    fifth to three quarters above this default.
    """

    linearized: bool = eqx.field(static=True)
    reparameterized: bool = eqx.field(static=True)
    inner: Solver = Adam()
    solver: Solver = Adam()
    l2_rate: float = 5e-4
    outer_loss: OuterLoss = platt_loss
    damping: float = 0.0
    gauss_newton: bool = eqx.field(static=True, default=False)
    dtype: DTypeLike | None = eqx.field(static=True, default=None)
    subset: int | None = eqx.field(static=True, default=None)
    clip: bool = eqx.field(static=True, default=False)
    margin: bool = eqx.field(static=True, default=False)
    inner_loss: InnerLoss = SQUARED_ERROR
    rule: RateRule = RateRule()
    below_largest: float = eqx.field(static=True, default=0.7)
    tally: Tally | None = None

    def __check_init__(self):
        flags = ("linearized", "reparameterized", "gauss_newton", "clip", "margin")
        check_flags(**{name: getattr(self, name) for name in flags})
        check_l2_rate(self.l2_rate)
        check_subset(self.subset)
        if self.reparameterized:
            check_quadratic(self.inner_loss, "a reparameterised method solves for the head")
        quadratic = self.linearized and is_quadratic(self.inner_loss)
        check_solvers(self.inner, self.solver, quadratic=quadratic, damping=self.damping)
        check_clip(self.clip, self.reparameterized)
        if self.dtype is not None and not self.reparameterized:
            raise ValueError(
                "dtype is the precision of the head's ridge solve, and this method (cig, vig) "
                "trains the head: leave dtype out."
            )
        check_number("below_largest", self.below_largest, lambda b: 0 < b <= 1, "in (0, 1]")
        if not isinstance(self.rule, RateRule):
            raise ValueError(f"rule is {self.rule!r}: pass a methods.RateRule, such as RateRule().")
        for name, value in (("inner", self.inner), ("solver", self.solver)):
            if isinstance(value, Adam) and value.learning_rate is None and value.steps == 1:
                raise ValueError(f"{name}: one step shows no trend to find a rate by; give one.")

    @property
    def form(self) -> str:
        """Which ready form this is one of: what a recipe calls it. A subclass is none of them."""
        if type(self) is not implicit:
            return type(self).__name__
        reparameterized, trained = ("rcig_paper", "rig"), ("cig", "vig")
        return (reparameterized if self.reparameterized else trained)[not self.linearized]

    def hypergradient(self, model, coreset, images, targets, *, key):
        result = implicit_hypergradient(
            model,
            coreset,
            images,
            targets,
            linearized=self.linearized,
            reparameterized=self.reparameterized,
            inner=self.inner,
            solver=self.solver,
            l2_rate=self.l2_rate,
            inner_loss=self.inner_loss,
            outer_loss=self.outer_loss,
            damping=self.damping,
            gauss_newton=self.gauss_newton,
            dtype=self.dtype,
            clip=self.clip,
            chosen=choose(len(coreset.support()[1]), self.subset, key),
        )
        return subtract_margin(result, coreset) if self.margin else result

    @full_precision
    def tune(self, model, coreset, images, targets):
        loss = self.inner_loss
        loss = over_support(loss, coreset) if is_quadratic(loss) else loss
        problem = InnerProblem(
            model, self.linearized, self.reparameterized, self.l2_rate, self.dtype, loss
        )
        X_S, y_S = coreset.support()

        def inner_at(rate: Any) -> InnerSolution:
            inner = _with_rate(self, "inner", rate).inner
            return InnerSolution.of(problem, X_S, y_S, inner, self.gauss_newton)

        inner_rate = _rate(self.inner)
        if inner_rate is None:
            largest = find_rate(lambda rate: inner_at(rate).stats["inner_monotone"], 1e-5)
            inner_rate = self.below_largest * largest
        solver_rate = _rate(self.solver)
        if solver_rate is None:
            at, at_T = inner_at(inner_rate), problem.expand(images)

            def outer(theta: PyTree) -> Scalar:
                f_T = problem.outputs(theta, at.at_S(theta[0]), y_S, at_T)
                return self.outer_loss(f_T, targets, coreset.log_temperature)

            g_T = jax.grad(outer)(at.theta)

            def monotone(rate: Array) -> Bool[Array, ""]:
                solver = _with_rate(self, "solver", rate).solver
                return at.inverse(solver, g_T, self.damping).stats["monotone"]

            solver_rate = self.below_largest * find_rate(monotone, 5e-5)
        tuned = _with_rate(_with_rate(self, "inner", inner_rate), "solver", solver_rate)
        return eqx.tree_at(
            lambda method: method.tally,
            tuned,
            Tally(jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32)),
            is_leaf=lambda x: x is None,
        )

    def adapt(self, stats):
        if self.tally is None:
            return self

        def count(kind: str) -> Int[Array, "2"]:
            flags = [stats.get(f"{name}_{kind}", False) for name in ("inner", "solver")]
            return jnp.stack([jnp.asarray(flag, jnp.int32) for flag in flags])

        rule, tally = self.rule, self.tally
        seen = tally.seen + 1
        diverged = tally.diverged + count("diverged")
        monotone = tally.monotone + count("monotone")
        due = seen >= rule.window
        factor = jnp.where(
            diverged >= rule.shrink_at * rule.window,
            rule.shrink,
            jnp.where(monotone >= rule.grow_at * rule.window, rule.grow, 1.0),
        )
        factor = jnp.where(due, factor, 1.0)
        kept = jnp.where(due, 0, 1)
        method = eqx.tree_at(
            lambda m: m.tally, self, Tally(kept * seen, kept * diverged, kept * monotone)
        )
        for index, name in enumerate(("inner", "solver")):
            rate = _rate(getattr(self, name))
            if rate is not None and (name == "inner" or rule.solver):
                rate = jnp.asarray(rate)
                method = _with_rate(method, name, rate * factor[index].astype(rate.dtype))
        return method


def _rate(solver: Solver) -> Any:
    """Adam's learning rate, `None` if it has yet to be found; 0 where it does not matter."""
    return solver.learning_rate if isinstance(solver, Adam) and solver.steps else 0.0


def _with_rate(method: "implicit", name: str, rate: Any) -> "implicit":
    """The method with another learning rate, if that solver has one."""
    solver = getattr(method, name)
    if not isinstance(solver, Adam):
        return method
    return eqx.tree_at(
        lambda m: getattr(m, name).learning_rate,
        method,
        jnp.asarray(rate, jnp.float32),
        is_leaf=lambda x: x is None,
    )


def find_rate(
    monotone: Callable[[Scalar], Bool[Array, ""]], start: float, *, doublings: int = 30
) -> Float[Array, ""]:
    """The largest learning rate, to a sixth, at which a descent is monotone.

    Doubles from `start` until the descent is not, then divides by 1.2 until it is.
    """

    def grow(carry):
        rate, count = carry
        return 2 * rate, count + 1

    def growing(carry):
        rate, count = carry
        return (count < doublings) & monotone(rate)

    rate, _ = jax.lax.while_loop(
        growing, grow, (jnp.asarray(start, jnp.float32), jnp.zeros((), jnp.int32))
    )
    floor = 1e-3 * start
    return jax.lax.while_loop(
        lambda rate: (rate > floor) & ~monotone(rate), lambda rate: rate / 1.2, rate
    )


def rcig_paper(**changed: Any) -> implicit:
    """RCIG as in the paper: linearised, head solved for, 20 and 20 Adam steps (Algorithm 1).

    Adam's rates are 0.7 of the largest, which are the paper's: pass `below_largest=1.0` for those,
    or take `presets.paper()`, which does. `changed` are fields of
    [`implicit`][rcig_eqx.methods.implicit], such as `inner=Adam(steps=50)` or `clip=True`.
    """
    return implicit(linearized=True, reparameterized=True, **changed)


def rig(**changed: Any) -> implicit:
    """RCIG without linearisation: head solved for, ordinary training dynamics (Table 1).

    The features move with the body, and the L2 term is of how far it has moved. The authors' code
    keeps the features of the start, and adds how much the outputs of the start's head have changed.
    """
    return implicit(linearized=False, reparameterized=True, **changed)


def cig(*, outer_loss: OuterLoss = mse_loss, **changed: Any) -> implicit:
    """RCIG with the head trained instead of solved for (section 3.2, Table 1).

    Its outer loss is the mean-squared error: Platt's comes with the head's solution (section 3.3).
    """
    return implicit(linearized=True, reparameterized=False, outer_loss=outer_loss, **changed)


def vig(*, outer_loss: OuterLoss = mse_loss, **changed: Any) -> implicit:
    """Plain implicit gradients: ordinary dynamics, all parameters trained (section 3.1).

    Its outer loss is the mean-squared error, as [`cig`][rcig_eqx.methods.cig]'s.
    """
    return implicit(linearized=False, reparameterized=False, outer_loss=outer_loss, **changed)
