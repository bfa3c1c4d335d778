"""Statistics of training images, in float64 and in chunks, as they may not fit in memory."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Num

_CHUNK = 2048  # images held as float64 at once: 50 MB for 32x32 RGB


def channel_statistics(
    images: Num[np.ndarray, "n h w c"],
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Mean and standard deviation of each channel, in units of [0, 1].

    A channel that is constant, up to rounding, is given deviation 1: dividing by it is harmless.
    """
    pixels = images.size // images.shape[-1]
    mean = sum(x.sum(axis=(0, 1, 2)) for x in _chunks(images)) / pixels
    variance = sum(((x - mean) ** 2).sum(axis=(0, 1, 2)) for x in _chunks(images)) / pixels
    std = np.sqrt(variance)
    return mean, np.where(std > 1e-6, std, 1.0)


def covariance_eigh(
    images: Num[np.ndarray, "n h w c"],
    mean: Float64[np.ndarray, " c"],
    std: Float64[np.ndarray, " c"],
) -> tuple[
    Float64[np.ndarray, " d"],
    Float64[np.ndarray, " d"],
    Float64[np.ndarray, "d d"],
]:
    """Mean, and the covariance's ascending eigenvalues and eigenvectors, of flattened images.

    The images are standardised by `mean` and `std` first; the covariance is divided by n.
    """
    n, d = len(images), images[0].size
    total, second = np.zeros(d), np.zeros((d, d))
    for x in _chunks(images):
        flat = ((x - mean) / std).reshape(len(x), d)
        total += flat.sum(axis=0)
        second += flat.T @ flat
    center = total / n
    eigenvalues, eigenvectors = np.linalg.eigh(second / n - np.outer(center, center))
    return center, eigenvalues, eigenvectors


def _chunks(images: Num[np.ndarray, "n h w c"]) -> Iterator[Float64[np.ndarray, "m h w c"]]:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"images are {images.dtype}: pass uint8 in [0, 255] or floats in [0, 1].")
    for start in range(0, len(images), _CHUNK):
        x = images[start : start + _CHUNK].astype(np.float64)
        yield x / 255 if images.dtype == np.uint8 else x
