"""Statistics of training images in one pass, so that they may be read as they come."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Num

from .._console import track
from ._arrays import plain_array
from ._dataset import Dataset
from ._images import AbstractImages

_CHUNK = 1024  # images looked at together
# Bytes less 128 are at most 128: up to so many products of two add up in float32 without rounding.
_EXACT = 1024
_RESOLVED = 1e5  # deviations from zero; beyond, float32 has less than two digits of one left
_MIDDLE = 128


class Moments(NamedTuple):
    """Means over all tiles of y = x - shift, x [d] a flattened tile in units of [0, 1].

    - `shift`: near the middle for bytes, 0 for floats; of what is no image the first channels [d].
    - `mean` [d]: of y; `square` [d]: of y²; `second` [d d]: of y yᵀ, or `None`.
    """

    shift: float | Float64[np.ndarray, " d"]
    mean: Float64[np.ndarray, " d"]
    square: Float64[np.ndarray, " d"]
    second: Float64[np.ndarray, "d d"] | None

    def channels(self, count: int) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
        """Mean and standard deviation of each of `count` channels.

        One that is constant, up to rounding, is given deviation 1: dividing by it is harmless.
        Raises `ValueError` for one whose variation float32 rounds away beside its mean.
        """
        mean = self.mean.reshape(-1, count).mean(axis=0)
        variance = self.square.reshape(-1, count).mean(axis=0) - mean**2
        std = np.sqrt(np.maximum(variance, 0))
        shift = np.broadcast_to(self.shift, self.mean.shape)[:count]
        mean, rounding = mean + shift, np.where(np.ndim(self.shift), 1e-12 * np.abs(shift), 1e-6)
        varies = std > rounding
        for c in np.flatnonzero(varies & (np.abs(mean) > _RESOLVED * std))[:1]:
            raise ValueError(
                f"Channel or column {c} is {mean[c]:.7g} ± {std[c]:.3g}, which float32 cannot tell "
                "apart: subtract its mean first."
            )
        return mean, np.where(varies, std, 1.0)


def moments(
    images: Any, block: int | None, *, full: bool = False, progress: bool = False
) -> Moments:
    """One pass over the inputs [n *shape] of an array, a `Dataset` or a set on disk.

    `block` is the side of the tiles, the whole image if `None`; `full` asks for `second`. Sums of
    bytes are exact whatever the order, those of floats are in float64: a set has the same moments
    in memory and on disk.
    """
    shape = image_shape_of(images)
    d, count = math.prod(shape) if block is None else shape[2] * block**2, 0
    total, square, second = np.zeros(d), np.zeros(d), np.zeros((d, d)) if full else None
    exact = _dtype(images) == np.uint8
    shift, unit = (_MIDDLE / 255, 255) if exact else (0.0, 1)
    for chunk in _chunks(images, progress):
        x = to_tiles(chunk, block)
        if len(shape) != 3 and not count:
            shift = np.tile(x[0, : shape[-1]].astype(np.float64), d // shape[-1])
        for start in range(0, len(x), _EXACT):
            part = x[start : start + _EXACT].astype(np.float32 if exact else np.float64)
            part -= _MIDDLE if exact else shift
            total += part.sum(axis=0, dtype=np.float64)
            if second is None:
                square += np.einsum("nd,nd->d", part, part)
            else:
                second += part.T @ part
        count += len(x)
    if second is not None:
        square = second.diagonal().copy()
        second /= count * unit**2
    return Moments(shift, total / count / unit, square / count / unit**2, second)


def covariance(
    found: Moments, mean: Float64[np.ndarray, " c"], std: Float64[np.ndarray, " c"]
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
    """Mean and covariance of the tiles once standardized by `mean` and `std`, channel by channel.

    In place of `found.second`, which is of the same size.
    """
    assert found.second is not None
    repeats = len(found.mean) // len(mean)
    mean, std = np.tile(mean, repeats), np.tile(std, repeats)
    matrix = found.second
    for row, center in zip(matrix, found.mean, strict=True):  # no second matrix of that size
        row -= center * found.mean
    matrix /= std
    matrix /= std[:, None]
    return (found.mean + found.shift - mean) / std, matrix


def to_tiles(images: Any, block: int | None) -> Any:
    """Images [n h w c] cut into square tiles, flattened: [n * tiles, block * block * c].

    The whole image is the tile if `block` is `None`. Takes arrays of numpy and of JAX.
    """
    if block is None:
        return images.reshape(len(images), -1)
    n, h, w, c = images.shape
    grid = images.reshape(n, h // block, block, w // block, block, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, block * block * c)


def from_tiles(tiles: Any, shape: tuple[int, ...], block: int | None) -> Any:
    """The inverse of `to_tiles`, for images of `shape` [n h w c]."""
    if block is None:
        return tiles.reshape(shape)
    n, h, w, c = shape
    grid = tiles.reshape(n, h // block, w // block, block, block, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def image_shape_of(images: Any) -> tuple[int, ...]:
    """The shape of one input of an array, a `Dataset` or a set on disk."""
    return images.image_shape if isinstance(images, Dataset | AbstractImages) else images.shape[1:]


def _dtype(images: Any) -> np.dtype:
    return images.images.dtype if isinstance(images, Dataset) else images.dtype


def _chunks(images: Any, progress: bool) -> Iterator[Num[np.ndarray, "m *shape"]]:
    dtype = _dtype(images)
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(f"images are {dtype}: pass uint8 in [0, 255] or floats in [0, 1].")
    images = images.images if isinstance(images, Dataset) else images
    starts = range(0, len(images), _CHUNK)
    for start in track(starts, "reading all images once", shown=progress):
        if isinstance(images, AbstractImages):
            yield images.gather(range(start, min(start + _CHUNK, len(images))))[0]
        else:
            yield plain_array(np.asanyarray(images[start : start + _CHUNK]), "images")
