"""Linear solvers and operators for the inner problem, as lineax values."""

from ._cg import ConjugateGradient as ConjugateGradient
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
