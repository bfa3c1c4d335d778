"""One linear solve, accounted for in the same words whatever the solver."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from .._trees import norm
from .._types import PyTree
from ._definite import residual_of, traits

# How a statistic of several solves side by side is taken together; any other goes by its dtype:
# a flag must hold of all, a count is the largest, as they wait for the slowest, a number the mean.
TOGETHER = {
    "residual": jnp.max,
    "step_times_curvature": jnp.max,  # one that breaks the condition breaks it
    "diverged": jnp.any,
}
_OWN_WORDS = ("monotone", "step_times_curvature")  # statistics that some solvers add


class Prepared(eqx.Module):
    """A solver and an operator, with whatever several right-hand sides share."""

    operator: lx.AbstractLinearOperator
    solver: lx.AbstractLinearSolver[Any]
    state: PyTree
    options: dict[str, Any]

    def solve(self, b: PyTree) -> tuple[PyTree, dict[str, Array]]:
        """The solution, and `account` of how it was come by."""
        solution = lx.linear_solve(
            self.operator, b, self.solver, options=self.options, state=self.state, throw=False
        )
        return solution.value, account(self, b, solution)


def prepare(
    operator: lx.AbstractLinearOperator,
    solver: lx.AbstractLinearSolver[Any],
    options: dict[str, Any] | None = None,
) -> Prepared:
    """A factorization, where the solver makes one; options that it does not take are left out.

    A direct solver gets the matrix, so that residuals cost no further product.
    """
    takes, options = traits(solver), dict(options or {})
    for name, taken in (("preconditioner", takes.preconditioned), ("y0", takes.started)):
        if not taken:
            options.pop(name, None)
    operator = lx.materialise(operator) if takes.direct and not takes.dual else operator
    dynamic, static = eqx.partition(operator, eqx.is_array)
    fixed = eqx.combine(jax.lax.stop_gradient(dynamic), static)
    return Prepared(operator, solver, solver.init(fixed, options), options)


def account(given: Prepared, b: PyTree, solution: lx.Solution) -> dict[str, Array]:
    """What a solve cost and how it went.

    - `iterations`: 0 of a direct solver.
    - `products`: with the operator, the residual's included. A solver that does not count them took
      as many as its steps, or, if it counts no steps, as the operator has rows.
    - `residual`: ‖b − A x‖ / ‖b‖, by one more product where the solver does not tell it.
    - `converged`: whether the solver did what was asked of it.
    - `diverged`: whether what it found is worthless. A solve that was truncated is neither.
    """
    said, x = solution.stats, solution.value
    steps, residual = said.get("num_steps"), said.get("residual")
    rows = sum(leaf.size for leaf in jax.tree.leaves(b))
    products = said.get("products", rows if steps is None else steps)
    if residual is None:
        residual = residual_of(given.operator, x, b)
        products = products + int(not traits(given.solver).direct)
    good = solution.result == lx.RESULTS.successful
    truncated = solution.result == lx.RESULTS.max_steps_reached
    ended = (good | (solution.result == lx.RESULTS.stagnation)) & (residual <= 1)  # v = 0 has 1
    stats = {
        "iterations": jnp.asarray(0 if steps is None else steps, jnp.int32),
        "products": jnp.asarray(products, jnp.int32),
        "residual": residual,
        "converged": good & ended,
        "diverged": ~(truncated | ended) | ~jnp.isfinite(norm(x)) | said.get("diverged", False),
    }
    return stats | {name: said[name] for name in _OWN_WORDS if name in said}


def together(name: str, x: Array, mean: Array) -> Array:
    """A statistic of several solves, stacked along the first axis, as one; `mean` is their mean."""
    own = name.removeprefix("inner_").removeprefix("solver_")
    if own in TOGETHER:
        return TOGETHER[own](x, axis=0)
    if x.dtype == jnp.bool_:
        return jnp.all(x, axis=0)
    return jnp.max(x, axis=0) if jnp.issubdtype(x.dtype, jnp.integer) else mean
