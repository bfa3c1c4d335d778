"""Where a distilled set starts: `distill(initialization=…)`."""

from .._coreset import centered_labels as centered_labels
from .._registry import Registry
from ._initializer import (
    AbstractInitializer as AbstractInitializer,
    Given as Given,
    check_start as check_start,
)
from ._kmeans import kmeans as kmeans
from ._noise import noise as noise
from ._real import real as real, real_coreset as real_coreset

INITIALIZERS: Registry[AbstractInitializer] = Registry(
    "initializers", real=real, noise=noise, kmeans=kmeans
)
"""Initializers by name."""

__all__ = [
    "INITIALIZERS",
    "AbstractInitializer",
    "centered_labels",
    "kmeans",
    "noise",
    "real_coreset",
]
