"""What is stored of a distilled set: what is optimized, ψ, and the set that it stands for."""

from .._registry import Registry
from ._budget import Bits as Bits
from ._compose import (
    AbstractStage as AbstractStage,
    Composition as Composition,
    Extra as Extra,
    Stored as Stored,
    compose as compose,
)
from ._cosine import Cosine as Cosine
from ._downsampled import Downsampled as Downsampled
from ._label_bits import LabelBits as LabelBits
from ._parameterization import (
    AbstractParameterization as AbstractParameterization,
    check_parameterization as check_parameterization,
)
from ._plain import Plain as Plain, plain as plain
from ._quantized import Quantized as Quantized
from ._shared_basis import SharedBasis as SharedBasis


def compact() -> Composition:
    """Half the pixels of each side and all numbers in 8 bits: `compose(Downsampled(2),
    Quantized(8), LabelBits(8))`. A float32 image takes as much as some fifteen of these."""
    return compose(Downsampled(2), Quantized(8), LabelBits(8))


PARAMETERIZATIONS: Registry[AbstractParameterization] = Registry(
    "parameterizations",
    plain=plain,
    downsampled=Downsampled,
    cosine=Cosine,
    shared_basis=SharedBasis,
    quantized=Quantized,
    label_bits=LabelBits,
    compact=compact,
)
"""Parameterizations by name."""

__all__ = [
    "PARAMETERIZATIONS",
    "AbstractParameterization",
    "AbstractStage",
    "Bits",
    "Composition",
    "Cosine",
    "Downsampled",
    "Extra",
    "LabelBits",
    "Quantized",
    "SharedBasis",
    "Stored",
    "compact",
    "compose",
    "plain",
]
