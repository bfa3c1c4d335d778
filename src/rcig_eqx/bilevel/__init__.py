"""Implicit differentiation: the one engine, and two ways for any bilevel problem to use it."""

from ._differentiable import implicitly_differentiable as implicitly_differentiable
from ._engine import RESULTS as RESULTS, Hypergradient as Hypergradient
from ._hypergradient import hypergradient as hypergradient
from ._inner import (
    AbstractInnerLoss as AbstractInnerLoss,
    GaussNewton as GaussNewton,
    LeastSquares as LeastSquares,
)

__all__ = [
    "RESULTS",
    "GaussNewton",
    "Hypergradient",
    "LeastSquares",
    "hypergradient",
    "implicitly_differentiable",
]
