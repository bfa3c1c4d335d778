"""What a caller may know of a linear solver, and what our own ones share."""

import abc
from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Scalar

from .._trees import relative, subtract
from .._types import PyTree

_DIRECT = (
    lx.AutoLinearSolver,
    lx.Cholesky,
    lx.Diagonal,
    lx.LU,
    lx.QR,
    lx.SVD,
    lx.Triangular,
    lx.Tridiagonal,
)


class Traits(eqx.Module):
    """What a solver does with an operator and with the options of `lineax.linear_solve`.

    - `direct`: it forms the operator's matrix.
    - `preconditioned`: it takes a `preconditioner`.
    - `started`: it takes a start, `y0`.
    - `dual`: it solves by the operator's kernel, which the operator must know.
    - `truncated`: it takes so many steps as it was asked for, and its residual tells how far they
      led: short of a tolerance is no failure.
    """

    direct: bool = False
    preconditioned: bool = False
    started: bool = False
    dual: bool = False
    truncated: bool = False


class AbstractDefiniteSolver(lx.AbstractLinearSolver[Any]):
    """A lineax solver for positive definite operators on pytrees of real arrays.

    Such an operator is its own transpose and has full rank. Beside `residual` and `num_steps` the
    statistics of a solve may hold `products`, how many it spent: `num_steps` if there are none.
    """

    @property
    @abc.abstractmethod
    def traits(self) -> Traits:
        """What the solver takes and does."""

    @abc.abstractmethod
    def advice(self, stats: dict[str, Any]) -> str:
        """What to change after solves that failed or fell short, as a sentence.

        `stats` are those of the first such solve.
        """

    def check_ready(self) -> None:
        """Raise `ValueError` if a number is missing that has to be found first."""

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict[str, Any]]:
        return state, options

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict[str, Any]]:
        return state, options

    def assume_full_rank(self) -> bool:
        return True


def traits(solver: lx.AbstractLinearSolver[Any]) -> Traits:
    """A solver's traits; one that is not ours is iterative, but for the direct ones of lineax."""
    if isinstance(solver, AbstractDefiniteSolver):
        return solver.traits
    direct = isinstance(solver, _DIRECT)
    return Traits(direct=direct, preconditioned=not direct, started=not direct)


def advice(solver: lx.AbstractLinearSolver[Any], stats: dict[str, Any]) -> str:
    """What to change after solves that fell short."""
    if isinstance(solver, AbstractDefiniteSolver):
        return solver.advice(stats)
    return f"Raise the max_steps of {type(solver).__name__}, add damping, or take another solver."


def check_solver(name: str, solver: Any) -> None:
    """Raise `ValueError` for what is no solver."""
    if not isinstance(solver, lx.AbstractLinearSolver):
        raise ValueError(
            f"{name} is {solver!r}: pass a value of rcig_eqx.solvers or lineax, such as "
            "rcig_eqx.solvers.ConjugateGradient()."
        )


def check_ready(solver: lx.AbstractLinearSolver[Any]) -> None:
    """Raise `ValueError` if a number of the solver has to be found first."""
    if isinstance(solver, AbstractDefiniteSolver):
        solver.check_ready()


def check_definite(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The operator, if it is tagged as these solvers need it; `ValueError` if not."""
    if not lx.is_positive_semidefinite(operator):
        raise ValueError(
            "This solver needs a positive definite operator: tag it with "
            "lineax.positive_semidefinite_tag if mathematics guarantees that it is."
        )
    return operator


def residual_of(operator: lx.AbstractLinearOperator, x: PyTree, b: PyTree) -> Scalar:
    """‖b − A x‖ / ‖b‖, by one product."""
    return relative(subtract(b, operator.mv(x)), b)
