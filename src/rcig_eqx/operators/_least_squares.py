"""The kernel of a general least-squares problem."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._types import PyTree
from ._hessian import linearized
from ._kernel import AbstractKernel


class LeastSquaresKernel(AbstractKernel):
    """J D⁻¹ Jᵀ + I of the residuals of a least-squares problem, flat, whose Hessian is JᵀJ + D.

    **Arguments:**

    - `residuals`: a function of the parameters; any pytree of arrays.
    - `params`: where it is linearized.
    - `diagonal`: D > 0, a pytree shaped like the parameters; all is NaN where it is not positive.
    """

    jacobian: lx.FunctionLinearOperator
    adjoint: lx.AbstractLinearOperator
    diagonal: PyTree

    def __init__(self, residuals: Callable[[PyTree], PyTree], params: PyTree, diagonal: PyTree):
        _, tangent = linearized(lambda theta: ravel_pytree(residuals(theta))[0], params)
        self.jacobian = lx.FunctionLinearOperator(tangent, jax.eval_shape(lambda: params))
        self.adjoint = self.jacobian.transpose()
        self.diagonal = diagonal

    def tangent(self, v: PyTree) -> Float[Array, " residuals"]:
        return self.jacobian.mv(v)

    def cotangent(self, u: Float[Array, " residuals"]) -> PyTree:
        return self.adjoint.mv(u)

    def weigh(self, v: PyTree) -> PyTree:
        return jax.tree.map(lambda x, d: jnp.where(d > 0, x / d, jnp.nan), v, self.diagonal)

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def noise(self) -> float:
        return 1.0

    def preconditioner(self) -> None:
        return None

    def as_matrix(self) -> Float[Array, "residuals residuals"]:
        """Column after column, a product each."""
        structure = self.in_structure()
        return jax.lax.map(self.mv, jnp.eye(structure.size, dtype=structure.dtype))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """All residuals in one flat array."""
        return self.jacobian.out_structure()
