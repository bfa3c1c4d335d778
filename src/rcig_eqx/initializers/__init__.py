"""Where a distilled set starts: `distill(initialization=…)`."""

from .._coreset import centered_labels as centered_labels
from .._registry import Registry
from ._herding import herding as herding
from ._initializer import (
    AbstractInitializer as AbstractInitializer,
    Given as Given,
    check_start as check_start,
)
from ._kmeans import kmeans as kmeans
from ._mean import mean as mean
from ._noise import noise as noise
from ._real import real as real, real_coreset as real_coreset

INITIALIZERS: Registry[AbstractInitializer] = Registry(
    "initializers", real=real, noise=noise, kmeans=kmeans, herding=herding, mean=mean
)
"""Initializers by name."""

__all__ = [
    "INITIALIZERS",
    "AbstractInitializer",
    "centered_labels",
    "herding",
    "kmeans",
    "mean",
    "noise",
    "real_coreset",
]
