"""Any direct solver in another precision."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from .._ridge import check_dtype
from .._types import PyTree
from ._definite import AbstractDefiniteSolver, Traits, check_definite, residual_of


class InDtype(AbstractDefiniteSolver):
    """A solver on the operator's matrix in another precision; the solution has b's own dtype.

    `InDtype(jnp.float64)` factors a float32 kernel in float64. The statistics are `num_steps`, 0,
    and `residual`, in that precision.
    """

    dtype: DTypeLike = eqx.field(static=True)
    solver: lx.AbstractLinearSolver[Any] = lx.Cholesky()

    def __check_init__(self) -> None:
        check_dtype(self.dtype)

    @property
    def traits(self) -> Traits:
        return Traits(direct=True)

    def advice(self, stats: dict[str, Any]) -> str:
        del stats
        return "The matrix is not positive definite in that precision: raise l2_rate or damping."

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> PyTree:
        matrix = check_definite(operator).as_matrix().astype(self.dtype)
        wide = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        return wide, self.solver.init(wide, options)

    def compute(
        self, state: PyTree, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        wide, inner = state
        b, unravel = ravel_pytree(vector)
        given = b.astype(self.dtype)
        x, result, _ = self.solver.compute(inner, given, options)
        residual = residual_of(wide, x, given).astype(b.dtype)
        stats = {"num_steps": jnp.zeros((), jnp.int32), "products": b.size, "residual": residual}
        return unravel(x.astype(b.dtype)), result, stats
