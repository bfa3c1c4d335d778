"""What is stored of a distilled set: what is optimized, ψ, and the set that it stands for."""

from .._registry import Registry
from ._parameterization import (
    AbstractParameterization as AbstractParameterization,
    check_parameterization as check_parameterization,
)
from ._plain import Plain as Plain, plain as plain

PARAMETERIZATIONS: Registry[AbstractParameterization] = Registry("parameterizations", plain=plain)
"""Parameterizations by name."""

__all__ = ["PARAMETERIZATIONS", "AbstractParameterization", "plain"]
