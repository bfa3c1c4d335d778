"""Solves in the dual, of operators that know their kernel."""

from typing import Any

import jax
import lineax as lx

from .._types import PyTree
from ..operators import AbstractKernel, DualizableOperator
from ..operators._kernel import woodbury
from ._definite import (
    AbstractDefiniteSolver,
    Traits,
    advice,
    check_ready,
    check_solver,
    residual_of,
    traits,
)
from ._solve import Prepared, prepare


class Dual(AbstractDefiniteSolver):
    """(JᵀWJ + D) v = g by its dual system, which has one unknown for each residual.

        v = D⁻¹ (g − Jᵀβ)        (J D⁻¹ Jᵀ + W⁻¹) β = J D⁻¹ g        (Woodbury's identity)

    The operator must know its dual, a
    `DualizableOperator`: that of a
    `LeastSquares` is one, and that of a linearized network's squared
    error. With the option `targets` y, g is taken for JᵀWy, and v = D⁻¹Jᵀα with
    (J D⁻¹ Jᵀ + W⁻¹) α = y: a truncated α is then not divided by D.

    **Arguments:**

    - `solver`: any lineax solver, of the dual system. `lineax.Cholesky()` forms the matrix and is
      exact; `ConjugateGradient()` needs products alone.

    The statistics are `num_steps`, `products`, and `residual`, that of v itself, by one more
    product; with `targets` α's. A residual above 1, which v = 0 has, is reported as
    `RESULTS.breakdown`.
    """

    solver: lx.AbstractLinearSolver[Any] = lx.Cholesky()

    def __check_init__(self) -> None:
        check_kernel_solver("solver", self.solver)

    @property
    def traits(self) -> Traits:
        return Traits(direct=traits(self.solver).direct, dual=True)

    def advice(self, stats: dict[str, Any]) -> str:
        return (
            f"{advice(self.solver, stats)} Under a trained head (cig) v takes a far closer dual "
            "solve: an rtol of 1e-6, or Dual(lineax.Cholesky())."
        )

    def check_ready(self) -> None:
        check_ready(self.solver)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[DualizableOperator, AbstractKernel, Prepared]:
        del options
        if not isinstance(operator, DualizableOperator):
            raise ValueError(
                "Dual needs an operator that knows its dual: pass LeastSquares(residuals, l2) as "
                "inner_loss, or another solver such as ConjugateGradient()."
            )
        kernel = operator.make_kernel()
        (prepared,) = prepare_kernel(kernel, self.solver)
        return operator, kernel, prepared

    def compute(
        self, state: PyTree, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        operator, kernel, prepared = state
        targets = options.get("targets")
        if targets is not None:
            alpha, stats = prepared.solve(targets)
            v = operator.restrict(kernel.weigh(kernel.cotangent(alpha)))
            residual = stats["residual"]
        else:
            Dv, _, stats = woodbury(kernel, operator.pad(vector), prepared.solve)
            scale = kernel.scale
            v = operator.restrict(jax.tree.map(lambda x: x / scale, kernel.weigh(Dv)))
            residual = residual_of(operator, v, vector)
        result = lx.RESULTS.where(
            stats["converged"], lx.RESULTS.successful, lx.RESULTS.max_steps_reached
        )
        sound = ~stats["diverged"] & (residual <= 1)
        result = lx.RESULTS.where(sound, result, lx.RESULTS.breakdown)
        # The right-hand side's tangent and v's transpose pass are one product between them.
        products = stats["products"] + (1 if targets is not None else 2)
        said = {"num_steps": stats["iterations"], "products": products, "residual": residual}
        return v, result, said


def prepare_kernel(
    kernel: AbstractKernel, *solvers: lx.AbstractLinearSolver[Any]
) -> list[Prepared]:
    """Each solver with a kernel and its preconditioner, one that comes twice prepared once."""
    preconditioner = kernel.preconditioner()
    options = {} if preconditioner is None else {"preconditioner": preconditioner}
    made: list[Prepared] = []
    for solver in solvers:
        same = next((one for one in made if alike(one.solver, solver)), None)
        made.append(prepare(kernel, solver, options) if same is None else same)
    return made


def alike(a: PyTree, b: PyTree) -> bool:
    """Whether two values are one to the compiler: equal in structure, and with the same leaves."""
    (leaves, structure), (others, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return structure == other and all(x is y for x, y in zip(leaves, others, strict=True))


def check_kernel_solver(name: str, solver: Any) -> None:
    """Raise `ValueError` for what does not solve with a kernel."""
    check_solver(name, solver)
    if traits(solver).dual:
        raise ValueError(
            f"{name} is {type(solver).__name__}, but the system is the dual one already: pass the "
            "solver within, such as lineax.Cholesky() or ConjugateGradient()."
        )
