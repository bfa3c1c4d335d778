"""Curvature as lineax operators: Hessian, Gauss–Newton, and the kernels of their duals."""

from ._dualizable import DualizableOperator as DualizableOperator
from ._gauss_newton import gauss_newton_operator as gauss_newton_operator
from ._hessian import hessian_operator as hessian_operator
from ._kernel import AbstractKernel as AbstractKernel
from ._least_squares import LeastSquaresKernel as LeastSquaresKernel
from ._ntk import NTK as NTK

__all__ = [
    "NTK",
]
