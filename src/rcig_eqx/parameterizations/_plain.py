"""The images and labels themselves."""

from .._coreset import Coreset
from ._parameterization import AbstractParameterization


class Plain(AbstractParameterization):
    """ψ is the distilled set: there is nothing to decode."""

    def encode(self, coreset: Coreset) -> Coreset:
        return coreset

    def decode(self, psi: Coreset) -> Coreset:
        return psi


def plain() -> Plain:
    """The images and labels themselves are optimized, as in the paper."""
    return Plain()
