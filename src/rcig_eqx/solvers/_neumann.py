"""The Neumann series for an inverse-Hessian-vector product."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Scalar

from .._checks import check_counts, check_number
from .._trees import axpy, known, norm, ratio, subtract
from .._types import PyTree
from ._definite import AbstractDefiniteSolver, Traits, check_definite


class Neumann(AbstractDefiniteSolver):
    """H⁻¹g ≈ η Σ_{k<K} (I − ηH)ᵏ g, the truncated Neumann series, with K products.

    The series converges where 0 < η λ_max(H) < 2. If `step_size` is `None`, η = 1/λ_max with
    λ_max from a power iteration. A step that breaks the condition by that estimate, or a series
    that ended with a larger residual than it began with (the estimate comes from below, and an
    indefinite H has no convergent series), is reported as `RESULTS.breakdown`.

    **Arguments:**

    - `max_steps`: terms K of the series.
    - `rtol`: stop earlier, once the relative residual is below it; 0 takes all terms, unless
      nothing is left to add.
    - `step_size`: η.
    - `power_steps`: products spent on λ_max.

    The statistics are `num_steps` (products, power iteration included), `max_steps`, `residual`
    (‖g − Hv‖/‖g‖) and `step_times_curvature` (η λ_max). A series that used up its terms before
    `rtol` is reported as `RESULTS.max_steps_reached`, with an `rtol` of 0 as a success: it is
    truncated on purpose.
    """

    max_steps: int = eqx.field(static=True, default=20)
    rtol: float = eqx.field(static=True, default=0.0)
    step_size: float | None = None
    power_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        check_counts(max_steps=self.max_steps, power_steps=self.power_steps)
        check_number("rtol", self.rtol, lambda r: 0 <= r < 1, "between 0 and 1")
        check_number("step_size", self.step_size, lambda s: s is None or s > 0, "positive, or None")

    @property
    def traits(self) -> Traits:
        return Traits(started=True)

    def advice(self, stats: dict[str, Any]) -> str:
        said = "was not"
        if "step_times_curvature" in stats:
            said = f"was {stats['step_times_curvature']:.1f} when it first failed"
        return (
            "A Neumann series needs a positive definite Hessian and its step times the largest "
            f"curvature below 2; that {said}. Leave step_size out or make it smaller, or add "
            "damping or gauss_newton=True."
        )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, Scalar]:
        del options
        return check_definite(operator), largest_eigenvalue(operator, steps=self.power_steps)

    def compute(
        self, state: PyTree, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        operator, largest = state
        step_size = 1 / largest if self.step_size is None else jnp.asarray(self.step_size)
        target = self.rtol * norm(vector)
        v = options.get("y0")
        start = jax.tree.map(jnp.zeros_like, vector) if v is None else v

        def residual(v: PyTree) -> PyTree:
            return subtract(vector, operator.mv(v))

        def unfinished(carry):
            *_, length, step = carry
            return (length > target) & (step < self.max_steps)

        def body(carry):
            v, r, _, step = carry
            v = axpy(step_size, r, v)
            r = residual(v)  # η Σ (I − ηH)ᵏ g in Horner's form: no more products than by its terms
            return v, r, norm(r), step + 1

        r = vector if v is None else residual(v)
        first = norm(r)
        begin = (start, r, first, jnp.zeros((), jnp.int32))
        v, _, last, steps = jax.lax.while_loop(unfinished, body, begin)
        contraction = step_size * largest
        capped = (self.rtol > 0) & (last > target)
        result = lx.RESULTS.where(capped, lx.RESULTS.max_steps_reached, lx.RESULTS.successful)
        sound = (last <= first) & (contraction < 2)
        result = lx.RESULTS.where(sound, result, lx.RESULTS.breakdown)
        stats = {
            "num_steps": steps + self.power_steps,
            "max_steps": self.max_steps,
            "products": steps + self.power_steps + int("y0" in options),
            "residual": ratio(last, norm(vector)),
            "step_times_curvature": contraction,
        }
        return known(v, last), result, stats


def largest_eigenvalue(operator: lx.AbstractLinearOperator, *, steps: int = 10) -> Scalar:
    """λ_max of a positive definite operator, by `steps` products of a power iteration.

    From below: ‖Hv‖ of the last unit iterate. The start is random and always the same.
    """
    leaves, structure = jax.tree.flatten(operator.in_structure())
    keys = jr.split(jr.key(0), len(leaves))
    start = [  # drawn as vectors, which compile sooner
        jr.normal(key, (leaf.size,), leaf.dtype).reshape(leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    v = jax.tree.unflatten(structure, start)

    def product(_, carry):
        v, _ = carry
        v = jax.tree.map(lambda x: x / norm(v).astype(x.dtype), v)
        Hv = operator.mv(v)
        return Hv, norm(Hv)

    _, size = jax.lax.fori_loop(0, steps, product, (v, jnp.zeros_like(norm(v))))
    return size
