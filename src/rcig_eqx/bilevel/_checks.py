"""Which solver fits a bilevel problem, and what it is given."""

from collections.abc import Callable
from typing import Any

import jax
import lineax as lx
from jaxtyping import Scalar

from .._checks import check_number
from .._types import PyTree
from ..solvers._definite import check_ready, check_solver, traits
from ._inner import AbstractInnerLoss
from ._parameters import check_like

Solver = lx.AbstractLinearSolver[Any]
Preconditioner = lx.AbstractLinearOperator | Callable[[PyTree], PyTree]


def check_adjoint(
    solver: Solver,
    inner_loss: AbstractInnerLoss,
    damping: float | Scalar,
    preconditioner: Preconditioner | None,
    warm_start: PyTree = None,
) -> None:
    """Raise `ValueError` for a solver that does not fit the problem."""
    check_solver("solver", solver)
    check_ready(solver)
    takes, name = traits(solver), type(solver).__name__
    if takes.dual and not inner_loss.knows_dual:
        raise ValueError(
            f"solver is {name}, which needs to know that the inner loss is least squares: pass "
            "LeastSquares(residuals, l2) as inner_loss, or another solver such as "
            "ConjugateGradient()."
        )
    check_number("damping", damping, lambda d: d >= 0, "a number of at least 0")
    if preconditioner is not None and not takes.preconditioned:
        raise ValueError(
            f"solver is {name}, which takes no preconditioner: leave it out, or pass "
            "ConjugateGradient()."
        )
    if warm_start is not None and takes.dual and not takes.direct:
        raise ValueError(
            f"solver is {name}, whose unknowns are the residuals': it has no use for a warm_start "
            "of θ's. Leave it out, or pass ConjugateGradient()."
        )


def solver_options(
    preconditioner: Preconditioner | None, warm_start: PyTree, theta: PyTree
) -> dict[str, Any]:
    """Options for lineax; no derivative flows through them."""
    options: dict[str, Any] = {}
    if preconditioner is not None:
        is_operator = isinstance(preconditioner, lx.AbstractLinearOperator)
        product = preconditioner.mv if is_operator else preconditioner
        fixed = jax.lax.stop_gradient
        options["preconditioner"] = lx.FunctionLinearOperator(
            lambda v: fixed(product(fixed(v))),
            jax.eval_shape(lambda: theta),
            lx.positive_semidefinite_tag,
        )
    if warm_start is not None:
        check_like("warm_start", warm_start, theta)
        options["y0"] = jax.lax.stop_gradient(warm_start)
    return options
