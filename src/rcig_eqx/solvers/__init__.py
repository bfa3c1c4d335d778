"""Linear solvers and operators for the inner problem, as lineax values."""

from ._adam import Adam as Adam, Descent as Descent, adam_descent as adam_descent
from ._cg import ConjugateGradient as ConjugateGradient
from ._curvature import (
    damped as damped,
    gauss_newton_operator as gauss_newton_operator,
    hessian_operator as hessian_operator,
)
from ._dual import (
    AbstractDualSolver as AbstractDualSolver,
    DualCG as DualCG,
    DualCholesky as DualCholesky,
    DualSolution as DualSolution,
    DualSystem as DualSystem,
    dual_gram as dual_gram,
    dual_operator as dual_operator,
    head_preconditioner as head_preconditioner,
)
from ._neumann import Neumann as Neumann, largest_eigenvalue as largest_eigenvalue
from ._nystrom import Nystrom as Nystrom, nystrom_approximation as nystrom_approximation

# So that help() lists them.
__all__ = [name for name in dir() if not name.startswith("_")]  # pyright: ignore[reportUnsupportedDunderAll]
