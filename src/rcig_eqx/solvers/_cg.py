"""Conjugate gradients, stopped on the relative residual alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Scalar

from .._checks import check_counts, check_number
from .._trees import axpy, divide, dot, known, largest, norm, ratio, subtract
from .._types import PyTree
from ._definite import AbstractDefiniteSolver, Traits, check_definite


class ConjugateGradient(AbstractDefiniteSolver):
    """Preconditioned conjugate gradients as a lineax solver: ‖b − A x‖ ≤ rtol ‖b‖, or the cap.

    `lineax.CG` asks every component of the residual, and of the last change of x, to be small
    against that of b and x, and evaluates the operator once or twice more to begin and to
    stabilize. A truncated solve needs neither, and here each product is a tangent and a
    transpose pass through a network: this one spends one product per iteration, one more for a
    warm start, and one to close where rounding may matter.

    The recurrence's residual falls on where rounding keeps b − A x from falling. The two drift
    apart by about ε ‖A‖ Σ ‖Δx‖, which the solver sums up. Where ten times that is more than a tenth
    of the residual or of what is asked for, a closing product takes b − A x. If the recurrence has
    met `rtol` and b − A x has not, the iteration starts again from x, until that no longer halves
    the residual.

    Options, as for `lineax.CG`: `preconditioner`, a positive definite operator close to A⁻¹, and
    `y0`, where to start. The statistics are `num_steps` (iterations), `max_steps`, `products` and
    `residual`, ‖b − A x‖/‖b‖ to a tenth, or of the size that rounding leaves. Stopping at the cap
    is reported as `RESULTS.max_steps_reached`, and at the precision of the numbers as
    `RESULTS.stagnation`. A direction along which the operator does not curve upwards, which a
    positive definite one has none of, ends the iteration where it is, and is reported as
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
            "linearized, pass the method gauss_newton=True or damping; or take another solver."
        )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> lx.AbstractLinearOperator:
        del options
        return check_definite(operator)

    def compute(
        self, state: lx.AbstractLinearOperator, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        operator, y0 = state, options.get("y0")
        preconditioner = options.get("preconditioner")
        precondition = None if preconditioner is None else preconditioner.mv
        goal = self.rtol * norm(vector)
        if y0 is None:
            start, r = jax.tree.map(jnp.zeros_like, vector), vector
        else:
            start, r = y0, subtract(vector, operator.mv(y0))

        def unfinished(carry):
            _, _, length, step, _, definite, gaining = carry
            return (length > goal) & (step < self.max_steps) & definite & gaining

        def again(carry):
            """Add to x what solves A d = b − A x, then take the residual anew if in doubt."""
            y, r, before, step, closings, _, _ = carry
            y, r, step, drift, definite = self._iterate(operator.mv, precondition, y, r, goal, step)
            closed = (closings > 0) | ~(100 * drift <= jnp.maximum(goal, norm(r)))
            r = jax.lax.cond(
                closed,
                lambda y, r: subtract(vector, operator.mv(y)),
                lambda y, r: r,
                y,
                r,
            )
            length = jnp.where(closed, norm(r), jnp.maximum(norm(r), drift))
            gaining = (closings == 0) | (length <= before / 2)
            return y, r, length, step, closings + closed.astype(jnp.int32), definite, gaining

        zero, sound = jnp.zeros((), jnp.int32), jnp.asarray(True)
        begin = (start, r, norm(r), zero, zero, sound, sound)
        y, _, length, steps, closings, definite, gaining = jax.lax.while_loop(
            unfinished, again, begin
        )
        result = lx.RESULTS.where(gaining, lx.RESULTS.max_steps_reached, lx.RESULTS.stagnation)
        result = lx.RESULTS.where(length <= goal, lx.RESULTS.successful, result)
        result = lx.RESULTS.where(definite & jnp.isfinite(length), result, lx.RESULTS.breakdown)
        stats = {
            "num_steps": steps,
            "max_steps": self.max_steps,
            "products": steps + closings + int(y0 is not None),
            "residual": ratio(length, norm(vector)),
        }
        return known(y, length), result, stats

    def _iterate(
        self,
        product: Callable[[PyTree], PyTree],
        precondition: Callable[[PyTree], PyTree] | None,
        x: PyTree,
        r: PyTree,
        goal: Scalar,
        step: Scalar,
    ) -> tuple[PyTree, PyTree, Scalar, Scalar, Scalar]:
        """From x with residual r, and iteration `step`, until the recurrence's r is below `goal`.

        In units of r's largest number, as squares of smaller numbers may underflow. An iteration
        reads p, Ap, r and x no more often than the textbook's: the lengths that the drift is
        estimated by follow from scalars, as successive r are orthogonal, and r to the previous p.
        With a preconditioner they are not quite: ‖Ap‖ may be off by √2, and ‖p‖ is taken.

        **Returns:** x, the recurrence's r, the iterations done, how far r may have drifted from
        b − A x, and whether the operator curved upwards throughout.
        """
        scale = largest(r)
        r, target = divide(r, scale), (goal / scale) ** 2
        z = r if precondition is None else precondition(r)

        def unfinished(carry):
            *_, rr, _, step, _, _, definite = carry
            return (rr > target) & (step < self.max_steps) & definite

        def body(carry):
            x, r, p, rz, rr, pp, step, path, curved, _ = carry
            Ap = product(p)
            curvature = dot(p, Ap)
            definite = ~(curvature <= 0)
            length = jnp.where(definite, rz / curvature, 0)
            x = axpy(scale * length, p, x)
            r = axpy(-length, Ap, r)
            z = r if precondition is None else precondition(r)
            old_rr, rr = rr, dot(r, r)
            old_rz, rz = rz, dot(r, z)
            moved = length * jnp.sqrt(pp)
            path = path + moved
            curved = jnp.maximum(curved, ratio(jnp.sqrt(old_rr + rr), moved))
            beta = rz / old_rz
            p = axpy(beta, p, z)
            pp = rr + beta**2 * pp if precondition is None else dot(p, p)
            return x, r, p, rz, rr, pp, step + 1, path, curved, definite

        zero = scale * 0
        path = norm(x) / scale  # x is rounded where it starts, too
        lengths = dot(r, z), dot(r, r), dot(z, z)
        start = (x, r, z, *lengths, step, path, zero, jnp.asarray(True))
        x, r, *_, step, path, curved, definite = jax.lax.while_loop(unfinished, body, start)
        r = jax.tree.map(lambda r: scale.astype(r.dtype) * r, r)
        epsilon = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(r))
        return x, r, step, scale * epsilon * curved * path, definite
