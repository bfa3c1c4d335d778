"""Linear solvers for the inner problem and its adjoint, as lineax values."""

from ._adam import AbstractDescent as AbstractDescent, Adam as Adam
from ._cg import ConjugateGradient as ConjugateGradient
from ._definite import AbstractDefiniteSolver as AbstractDefiniteSolver, Traits as Traits
from ._dual import Dual as Dual
from ._neumann import Neumann as Neumann, largest_eigenvalue as largest_eigenvalue

__all__ = [
    "Adam",
    "ConjugateGradient",
    "Dual",
    "Neumann",
]
