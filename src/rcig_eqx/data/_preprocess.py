"""What happens to pixels before a network sees them, and the way back."""

import math
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ._arrays import plain_array
from ._dataset import DataError, Dataset
from ._fit import covariance, from_tiles, image_shape_of, moments, to_tiles
from ._images import AbstractImages

Images = Num[Array | np.ndarray, "n *shape"]
Training = Num[np.ndarray, "n *shape"] | Dataset | AbstractImages

_LARGEST_BLOCK = 64  # pixels: 12,288 dimensions in color


class AbstractPreprocess(eqx.Module):
    """An invertible map of images, or other inputs, fitted once on those of training.

    `preprocess(images)` takes images [n h w c], uint8 in [0, 255] or floats in [0, 1], or other
    inputs, floats in any units, and gives float32 of the same shape. `preprocess.inverse(x)` goes
    back to floats in those units, images in [0, 1], not clipped. Both are pure and can be jitted.

    Subclass it for one of your own. Its arrays are stored with a result, and must be float32; what
    else it needs are static fields.
    """

    @abstractmethod
    def __call__(self, images: Images) -> Float[Array, "n *shape"]:
        """What a network sees, of images as they are stored."""
        raise NotImplementedError

    @abstractmethod
    def inverse(self, x: Float[Array | np.ndarray, "n *shape"]) -> Float[Array, "n *shape"]:
        """Pixels in units of [0, 1], not clipped, of what a network sees."""
        raise NotImplementedError


class Identity(AbstractPreprocess):
    """Pixels in [0, 1], nothing else."""

    def __call__(self, images: Images) -> Float[Array, "n *shape"]:
        return to_unit(images)

    def inverse(self, x: Float[Array | np.ndarray, "n *shape"]) -> Float[Array, "n *shape"]:
        return jnp.asarray(x, jnp.float32)


class Standardize(AbstractPreprocess):
    """`(x - mean) / std` per channel, the last axis: of a table, per column.

    A constant channel has `std` 1, and so becomes 0.
    """

    mean: Float[Array, " c"]
    std: Float[Array, " c"]

    def __call__(self, images: Images) -> Float[Array, "n *shape"]:
        x = to_unit(images)
        return (x - _row(self.mean, x.ndim)) / _row(self.std, x.ndim)

    def inverse(self, x: Float[Array | np.ndarray, "n *shape"]) -> Float[Array, "n *shape"]:
        x = jnp.asarray(x, jnp.float32)
        return x * _row(self.std, x.ndim) + _row(self.mean, x.ndim)


class ZCA(AbstractPreprocess):
    """Whitening: `W (x - center)` of the flattened standardized image `x`.

    `W = U (S + eps)^(-1/2) Uᵀ`, where `U S Uᵀ` is the covariance of the training images and `eps`
    is `regularization` times its mean eigenvalue. `U` and `S + eps` are what is kept, because they
    give the inverse `U (S + eps)^(1/2) Uᵀ` just as exactly.

    With a `block`, `x` is a tile: every image is cut into tiles of `block` by `block` pixels, and
    all are whitened by the same `W`, fitted on all tiles of all training images.
    """

    standardize: Standardize
    center: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"]
    eigenvalues: Float[Array, " d"]  # S + eps, ascending
    regularization: float = eqx.field(static=True)
    block: int | None = eqx.field(static=True, default=None)

    def __call__(self, images: Images) -> Float[Array, "n *shape"]:
        check_block(images.shape[1:], self.block)
        x = self.standardize(images)
        flat = to_tiles(x, self.block) - _row(self.center, 2)
        return from_tiles(self._rescale(flat, self.eigenvalues**-0.5), x.shape, self.block)

    def inverse(self, x: Float[Array | np.ndarray, "n *shape"]) -> Float[Array, "n *shape"]:
        check_block(x.shape[1:], self.block)
        x = jnp.asarray(x, jnp.float32)
        flat = self._rescale(to_tiles(x, self.block), self.eigenvalues**0.5)
        back = from_tiles(flat + _row(self.center, 2), x.shape, self.block)
        return self.standardize.inverse(back)

    def _rescale(self, flat: Float[Array, "n d"], scale: Float[Array, " d"]) -> Float[Array, "n d"]:
        # Full float32, or accelerators would round the factors to fewer bits and lose the inverse.
        along = jnp.matmul(flat, self.eigenvectors, precision="highest") * _row(scale, 2)
        return jnp.matmul(along, self.eigenvectors.T, precision="highest")


def standardize(train: Training, *, progress: bool = False) -> Standardize:
    """Fit `Standardize` on training inputs: an array [n *shape], a `Dataset`, or a set on disk.

    A set on disk is read once, and never held. `progress` shows a bar. Raises `ValueError` for a
    channel or column whose variation float32 would round away beside its mean.
    """
    found = moments(train, None, progress=progress)
    return _standardize(*found.channels(image_shape_of(train)[-1]))


def zca(
    train: Training,
    regularization: float = 0.1,
    block: int | None = None,
    *,
    progress: bool = False,
) -> ZCA:
    """Fit `ZCA` on training images: an array [n h w c], a `Dataset`, or a set on disk.

    **Arguments:**

    - `train`: read once, from beginning to end, and never held: the same numbers come of a set in
        memory and of the same set on disk. To fit on fewer, pass
        `data.sample(train, 20_000, at_least=1, seed=0)`.
    - `regularization`: what is added to the eigenvalues, in units of their mean.
    - `block`: the side of the tiles that are whitened, a divisor of height and width; the whole
        image if `None`. The authors whiten images of 128 pixels in tiles of 64.
    - `progress`: whether to show a bar.

    In float64, of exact sums: O(n h w d + d³) time and d² numbers, for d = block² c or h w c.
    `ValueError` for a block that does not fit, and unless `regularization` is positive: pixels that
    never vary have eigenvalue 0.
    """
    if regularization <= 0:
        raise ValueError(f"regularization is {regularization}: make it positive, such as 0.1.")
    shape = image_shape_of(train)
    check_block(shape, block)
    found = moments(train, block, full=True, progress=progress)
    mean, std = found.channels(shape[2])
    center, matrix = covariance(found, mean, std)
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    average = eigenvalues.mean()
    eps = regularization * (average if average > 1e-12 else 1.0)  # else nothing ever varies
    return ZCA(
        _standardize(mean, std),
        jnp.asarray(center, jnp.float32),
        jnp.asarray(eigenvectors, jnp.float32),
        jnp.asarray(np.maximum(eigenvalues, 0) + eps, jnp.float32),
        float(regularization),
        block,
    )


def default_preprocess(train: Training, *, progress: bool = False) -> Standardize | ZCA:
    """What works best as a rule: `zca` for images of more than one channel, else `standardize`.

    Images of more than 64 pixels are whitened in tiles: the largest square ones of at most 64 that
    fill them, 64 for 128 pixels.
    """
    shape = image_shape_of(train)
    if len(shape) != 3 or shape[2] == 1:
        return standardize(train, progress=progress)
    h, w, _ = shape
    fits = math.gcd(h, w)
    tile = max(b for b in range(1, _LARGEST_BLOCK + 1) if fits % b == 0)
    return zca(train, block=tile if max(h, w) > _LARGEST_BLOCK else None, progress=progress)


def check_block(shape: tuple[int, ...], block: Any) -> None:
    """Raise `ValueError` unless tiles of `block` pixels fill an image of `shape` [h w c]."""
    if len(shape) != 3:
        raise ValueError(
            f"Whitening is of images [h w c], and each input is {list(shape)}: use standardize."
        )
    if block is None:
        return
    h, w = shape[:2]
    if not isinstance(block, int) or block < 1 or h % block or w % block:
        fits = math.gcd(h, w)
        valid = [str(b) for b in range(1, fits + 1) if fits % b == 0]
        raise ValueError(
            f"block is {block!r}, which does not divide images of {h}x{w} pixels: choose of "
            f"{', '.join(valid)}."
        )


def _standardize(mean: np.ndarray, std: np.ndarray) -> Standardize:
    return Standardize(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


def apply_in_chunks(
    preprocess: AbstractPreprocess, images: Num[np.ndarray, "n *shape"], *, chunk: int = 2048
) -> Float[np.ndarray, "n *shape"]:
    """`preprocess(images)` as a float32 numpy array, `chunk` images at a time to spare memory."""
    call = eqx.filter_jit(preprocess)
    out = np.empty(images.shape, np.float32)
    for start in range(0, len(images), chunk):
        out[start : start + chunk] = call(plain_array(images[start : start + chunk], "images"))
    return out


def to_state(preprocess: AbstractPreprocess) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`(config, arrays)`: the first can be written as JSON, the second as named arrays."""
    if type(preprocess) is Identity:  # a subclass may do something else
        return {"kind": "identity"}, {}
    if type(preprocess) is Standardize:
        return {"kind": "standardize"}, _arrays(preprocess, ("mean", "std"))
    if type(preprocess) is ZCA:
        own = _arrays(preprocess, ("center", "eigenvectors", "eigenvalues"))
        config = {"kind": "zca", "regularization": preprocess.regularization}
        if preprocess.block is not None:  # its own kind: a reader without tiles must not take it
            config |= {"kind": "zca_blocks", "block": preprocess.block}
        return config, _arrays(preprocess.standardize, ("mean", "std")) | own
    own = [np.asarray(leaf) for leaf in jax.tree.leaves(preprocess) if eqx.is_array_like(leaf)]
    if any(leaf.dtype != np.float32 or not np.isfinite(leaf).all() for leaf in own):
        raise ValueError(
            f"{type(preprocess).__name__} cannot be stored: make its arrays finite float32 ones, "
            "and all else equinox.field(static=True)."
        )
    config = {"kind": "own", "class": _class_name(preprocess)}
    return config, {str(index): leaf for index, leaf in enumerate(own)}


def from_state(
    config: dict[str, Any],
    arrays: dict[str, np.ndarray],
    own: AbstractPreprocess | None = None,
) -> AbstractPreprocess:
    """The preprocessing `to_state` stored. `ValueError` for an unknown kind or a missing array.

    One of a class outside the library, which no file can bring along, is `own` with the stored
    arrays; `DataError` without it, or where it does not fit.
    """
    kind = config.get("kind")
    if kind == "own":
        return _restored(config.get("class"), arrays, own)
    if kind not in ("identity", "standardize", "zca", "zca_blocks"):
        raise ValueError(
            f"preprocessing of kind {kind!r} is unknown: this version knows 'identity', "
            "'standardize' and 'zca', so the file may need a newer one."
        )
    try:
        values = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
        if kind == "identity":
            return Identity()
        scale = Standardize(values["mean"], values["std"])
        if kind == "standardize":
            return scale
        spectrum = (values["center"], values["eigenvectors"], values["eigenvalues"])
        block = int(config["block"]) if kind == "zca_blocks" else None
        return ZCA(scale, *spectrum, float(config["regularization"]), block)
    except KeyError as error:
        raise ValueError(f"preprocessing of kind {kind!r} lacks {error}: damaged file.") from error


def _class_name(preprocess: AbstractPreprocess) -> str:
    return f"{type(preprocess).__module__}.{type(preprocess).__qualname__}"


def _restored(
    name: Any, arrays: dict[str, np.ndarray], own: AbstractPreprocess | None
) -> AbstractPreprocess:
    if own is None or _class_name(own) != name:
        raise DataError(
            f"The images were preprocessed by {name}, which is no part of the library: pass an "
            "instance of it, as load_result(path, preprocess=...)."
        )
    leaves, structure = jax.tree.flatten(own)
    where = [index for index, leaf in enumerate(leaves) if eqx.is_array_like(leaf)]
    stored = [arrays[str(number)] for number in range(len(arrays))]
    if [np.shape(leaves[index]) for index in where] != [array.shape for array in stored]:
        raise DataError(
            f"The stored {name} has other arrays than the one given: build it as it was."
        )
    for index, array in zip(where, stored, strict=True):
        leaves[index] = jnp.asarray(array)
    return jax.tree.unflatten(structure, leaves)


def to_unit(images: Images) -> Float[Array, "n *shape"]:
    """Float32 pixels in units of [0, 1]: uint8 is divided by 255, floats are taken as they are."""
    images = plain_array(images, "images")
    if images.dtype == jnp.uint8:
        return jnp.asarray(images, jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}: pass uint8 in [0, 255] or floats in [0, 1].")
    return jnp.asarray(images, jnp.float32)


def _row(vector: Float[Array, " d"], ndim: int) -> Float[Array, "..."]:
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def _arrays(module: eqx.Module, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(module, name)) for name in names}
