"""Adam as a solver: on the inner loss, and on the quadratic whose minimum is H⁻¹g."""

import abc
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Bool, Float, Scalar

from .._backend import zeros
from .._checks import check_counts, check_number
from .._trees import divide, dot, largest, norm, ratio, relative, subtract
from .._types import PyTree
from ._definite import AbstractDefiniteSolver, Traits, check_definite

T = TypeVar("T", bound=lx.AbstractLinearSolver)


class Descent(eqx.Module):
    """Where a descent of a fixed number of steps ended, and how it went.

    - `value`: the last iterate.
    - `first`, `last`: the first and the last loss and norm of its gradient taken, the last ones at
      the iterate before `value`.
    - `monotone`: whether no loss was above the one before.
    """

    value: PyTree
    first: tuple[Scalar, Scalar]
    last: tuple[Scalar, Scalar]
    monotone: Bool[Array, ""]

    @property
    def residual(self) -> Scalar:
        """The norm of the last gradient relative to that of the first."""
        return ratio(self.last[1], self.first[1])

    @property
    def diverged(self) -> Bool[Array, ""]:
        """Whether the last loss is above the first, or not a number."""
        return ~(self.last[0] <= self.first[0])


def adam_descent(
    value_and_gradient: Callable[[PyTree], tuple[Scalar, PyTree]],
    start: PyTree,
    steps: int,
    learning_rate: float | Float[Array, ""],
) -> Descent:
    """`steps` ≥ 1 steps of Adam from `start`, with as many evaluations (paper, Algorithm 1).

    Memory does not grow with the steps.
    """
    optimizer = optax.adam(learning_rate)
    zero = norm(start) * 0

    def step(number, carry):
        x, state, first, last, monotone = carry
        loss, gradient = value_and_gradient(x)
        now = loss.astype(zero.dtype), norm(gradient)
        first = jax.tree.map(lambda a, b: jnp.where(number == 0, a, b), now, first)
        monotone &= (number == 0) | (now[0] <= last[0])
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic needs it
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(x, updates), state, first, now, monotone

    begin = start, optimizer.init(start), (zero, zero), (zero, zero), jnp.asarray(True)
    x, _, first, last, monotone = jax.lax.fori_loop(0, steps, step, begin)
    return Descent(x, first, last, monotone)


class AbstractDescent(AbstractDefiniteSolver):
    """A solver that descends: on ½vᵀHv − gᵀv, and on any other function as well."""

    learning_rate: eqx.AbstractVar[float | Float[Array, ""] | None]
    steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def descend(
        self, value_and_gradient: Callable[[PyTree], tuple[Scalar, PyTree]], start: PyTree
    ) -> Descent:
        """`steps` ≥ 1 steps from a start."""


def rate_of(solver: lx.AbstractLinearSolver[Any]) -> float | Float[Array, ""] | None:
    """A solver's learning rate, `None` before it is found; 0 if the solver has no rate."""
    return solver.learning_rate if isinstance(solver, AbstractDescent) and solver.steps else 0.0


def check_trend(name: str, solver: lx.AbstractLinearSolver[Any]) -> None:
    """Raise `ValueError` for a descent whose rate is to be found, and which is too short for it."""
    if isinstance(solver, AbstractDescent) and solver.learning_rate is None and solver.steps == 1:
        raise ValueError(f"{name}: one step shows no trend to find a rate by; give one.")


def with_rate(solver: T, rate: float | Scalar) -> T:
    """The solver with another learning rate, an array, if it has one."""
    if not isinstance(solver, AbstractDescent):
        return solver
    return eqx.tree_at(
        lambda s: s.learning_rate,
        solver,
        jnp.asarray(rate, jnp.float32),
        is_leaf=lambda x: x is None,
    )


class Adam(AbstractDescent):
    """Adam on ½vᵀHv − gᵀv, whose gradient is Hv − g: the paper's solver (equation 7).

    It needs no bound on the curvature, but a learning rate that suits the problem: `None` leaves
    it to [`tune`][rcig_eqx.tune] before a distillation. With `steps=0` the start is the solution.

    The statistics are `num_steps`, `max_steps`, `residual` (‖g − Hv‖/‖g‖ at the last gradient
    taken, one step before the end), `diverged`, whether the quadratic was above its value at v = 0
    there, and `monotone`. The descent is truncated on purpose, and `diverged` is for whoever sets
    the learning rate: only a residual that is not finite is reported as `RESULTS.breakdown`. One of
    0.999 or more is reported as `RESULTS.max_steps_reached`, as v = 0 leaves 1.

    The learning rate and Adam's ε of 1e-8 are absolute: a g much below ε hardly moves v.
    """

    learning_rate: float | Float[Array, ""] | None = None
    steps: int = eqx.field(static=True, default=20)

    def __check_init__(self) -> None:
        if self.steps != 0:
            check_counts(steps=self.steps)
        check_number(
            "learning_rate", self.learning_rate, lambda r: r is None or r > 0, "positive, or None"
        )

    def rate(self) -> float | Float[Array, ""]:
        """The learning rate; `ValueError` if it has not been found yet."""
        if self.learning_rate is None:
            raise ValueError(
                "Adam has no learning rate yet: give it one, as in Adam(1e-3), or find one with "
                "tune(state, batch); distill does so by itself."
            )
        return self.learning_rate

    @property
    def traits(self) -> Traits:
        return Traits(started=True, truncated=True)

    def advice(self, stats: dict[str, Any]) -> str:
        del stats
        return "Give Adam a lower learning_rate, as in Adam(1e-4)."

    def check_ready(self) -> None:
        self.rate()

    def descend(
        self, value_and_gradient: Callable[[PyTree], tuple[Scalar, PyTree]], start: PyTree
    ) -> Descent:
        return adam_descent(value_and_gradient, start, self.steps, self.rate())

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> lx.AbstractLinearOperator:
        del options
        return check_definite(operator)

    def compute(
        self, state: lx.AbstractLinearOperator, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        start = options.get("y0")
        if self.steps == 0:
            stats = {"num_steps": jnp.zeros((), jnp.int32), "max_steps": 0}
            if start is None:
                start, stats["residual"] = zeros(vector), relative(vector, vector)
            return start, lx.RESULTS.max_steps_reached, stats
        start = zeros(vector) if start is None else start
        unit = largest(vector)

        def value_and_gradient(v: PyTree) -> tuple[Scalar, PyTree]:
            gradient = subtract(state.mv(v), vector)
            slope = subtract(gradient, vector)
            # In units whose products neither underflow nor overflow; losses are only compared.
            return 0.5 * dot(divide(v, unit), divide(slope, unit)), gradient

        descent = self.descend(value_and_gradient, start)
        loss, length = descent.last
        residual = ratio(length, norm(vector))
        result = lx.RESULTS.where(
            residual < 0.999, lx.RESULTS.successful, lx.RESULTS.max_steps_reached
        )
        result = lx.RESULTS.where(jnp.isfinite(residual), result, lx.RESULTS.breakdown)
        stats = {
            "num_steps": jnp.asarray(self.steps, jnp.int32),
            "max_steps": self.steps,
            "residual": residual,
            "diverged": ~(loss <= 0),
            "monotone": descent.monotone,
        }
        return descent.value, result, stats
