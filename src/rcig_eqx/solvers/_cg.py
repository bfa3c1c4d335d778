"""Conjugate gradients, stopped on the relative residual alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

from .._checks import check_counts, check_number
from .._trees import axpy, dot, ratio
from .._types import PyTree
from ._definite import AbstractDefiniteSolver, Traits, check_definite


class ConjugateGradient(AbstractDefiniteSolver):
    """Preconditioned conjugate gradients as a lineax solver: ‖b − A x‖ ≤ rtol ‖b‖, or the cap.

    `lineax.CG` asks every component of the residual, and of the last change of x, to be small
    against that of b and x, and evaluates the operator once or twice more to begin and to
    stabilise. A truncated solve needs neither, and here each product is a tangent and a
    transpose pass through a network: this one spends exactly one product an iteration, and one
    more for a warm start.

    Options, as for `lineax.CG`: `preconditioner`, a positive definite operator close to A⁻¹, and
    `y0`, where to start. The statistics are `num_steps`, `max_steps`, `products` and
    `residual`, the relative residual of the recurrence. Stopping at the cap is reported as
    `RESULTS.max_steps_reached`. A direction along which the operator does not curve upwards, which
    a positive definite one has none of, ends the iteration where it is, and is reported as
    `RESULTS.breakdown`, as is a residual that is not finite.
    """

    rtol: float = eqx.field(static=True, default=1e-3)
    max_steps: int = eqx.field(static=True, default=100)

    def __check_init__(self) -> None:
        check_number("rtol", self.rtol, lambda r: 0 < r < 1, "between 0 and 1")
        check_counts(max_steps=self.max_steps)

    @property
    def traits(self) -> Traits:
        return Traits(preconditioned=True, started=True)

    def advice(self, stats: dict[str, Any]) -> str:
        del stats
        return (
            "Where it stopped at its cap, raise max_steps, as in ConjugateGradient(1e-4, 1000); "
            "where it broke down before, as on the indefinite Hessian of a network that is not "
            "linearised, pass the method gauss_newton=True or damping; or take another solver."
        )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> lx.AbstractLinearOperator:
        del options
        return check_definite(operator)

    def compute(
        self, state: lx.AbstractLinearOperator, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        operator = state
        precondition = _product(options.get("preconditioner"))
        target = self.rtol**2 * dot(vector, vector)
        y0 = options.get("y0")
        if y0 is None:
            y0, r = jax.tree.map(jnp.zeros_like, vector), vector
        else:
            r = jax.tree.map(jnp.subtract, vector, operator.mv(y0))
        z = precondition(r)

        def unfinished(carry):
            *_, squared_residual, step, definite = carry
            return (squared_residual > target) & (step < self.max_steps) & definite

        def body(carry):
            y, r, p, rz, _, step, _ = carry
            Ap = operator.mv(p)
            curvature = dot(p, Ap)
            definite = ~(curvature <= 0)
            length = jnp.where(definite, rz / curvature, 0)
            y = axpy(length, p, y)
            r = axpy(-length, Ap, r)
            z = precondition(r)
            rz, previous = dot(r, z), rz
            return y, r, axpy(rz / previous, p, z), rz, dot(r, r), step + 1, definite

        start = (y0, r, z, dot(r, z), dot(r, r), jnp.zeros((), jnp.int32), jnp.asarray(True))
        y, _, _, _, squared_residual, steps, definite = jax.lax.while_loop(unfinished, body, start)
        residual = jnp.sqrt(ratio(squared_residual, dot(vector, vector)))
        result = lx.RESULTS.where(
            squared_residual > target, lx.RESULTS.max_steps_reached, lx.RESULTS.successful
        )
        sound = definite & jnp.isfinite(squared_residual)
        result = lx.RESULTS.where(sound, result, lx.RESULTS.breakdown)
        stats = {
            "num_steps": steps,
            "max_steps": self.max_steps,
            "products": steps + int("y0" in options),
            "residual": residual,
        }
        return y, result, stats


def _product(operator: lx.AbstractLinearOperator | None) -> Callable[[PyTree], PyTree]:
    return (lambda vector: vector) if operator is None else operator.mv
