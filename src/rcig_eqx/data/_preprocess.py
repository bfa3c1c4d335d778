"""What happens to pixels before a network sees them, and the way back."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ._dataset import DataError
from ._fit import channel_statistics, covariance_eigh

Images = Num[Array | np.ndarray, "n h w c"]


class AbstractPreprocess(eqx.Module):
    """An invertible map of images, fitted once on training images.

    `preprocess(images)` takes uint8 in [0, 255] or floats in [0, 1], [n h w c], and gives float32
    of the same shape; `preprocess.inverse(x)` goes back to floats in units of [0, 1], not clipped.
    Both are pure and can be jitted.

    Subclass it for one of your own. Its arrays are stored with a result, and must be float32; what
    else it needs are static fields.
    """

    @abstractmethod
    def __call__(self, images: Images) -> Float[Array, "n h w c"]:
        """What a network sees, of images as they are stored."""
        raise NotImplementedError

    @abstractmethod
    def inverse(self, x: Float[Array | np.ndarray, "n h w c"]) -> Float[Array, "n h w c"]:
        """Pixels in units of [0, 1], not clipped, of what a network sees."""
        raise NotImplementedError


class Identity(AbstractPreprocess):
    """Pixels in [0, 1], nothing else."""

    def __call__(self, images: Images) -> Float[Array, "n h w c"]:
        return to_unit(images)

    def inverse(self, x: Float[Array | np.ndarray, "n h w c"]) -> Float[Array, "n h w c"]:
        return jnp.asarray(x, jnp.float32)


class Standardize(AbstractPreprocess):
    """`(x - mean) / std` a channel; a constant channel has `std` 1, and so becomes 0."""

    mean: Float[Array, " c"]
    std: Float[Array, " c"]

    def __call__(self, images: Images) -> Float[Array, "n h w c"]:
        x = to_unit(images)
        return (x - _row(self.mean, 4)) / _row(self.std, 4)

    def inverse(self, x: Float[Array | np.ndarray, "n h w c"]) -> Float[Array, "n h w c"]:
        x = jnp.asarray(x, jnp.float32)
        return x * _row(self.std, 4) + _row(self.mean, 4)


class ZCA(AbstractPreprocess):
    """Whitening: `W (x - center)` of the flattened standardised image `x`.

    `W = U (S + eps)^(-1/2) Uᵀ`, where `U S Uᵀ` is the covariance of the training images and `eps`
    is `regularization` times its mean eigenvalue. `U` and `S + eps` are what is kept, because they
    give the inverse `U (S + eps)^(1/2) Uᵀ` just as exactly.
    """

    standardize: Standardize
    center: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"]
    eigenvalues: Float[Array, " d"]  # S + eps, ascending
    regularization: float = eqx.field(static=True)

    def __call__(self, images: Images) -> Float[Array, "n h w c"]:
        x = self.standardize(images)
        flat = x.reshape(x.shape[0], -1) - _row(self.center, 2)
        return self._rescale(flat, self.eigenvalues**-0.5).reshape(x.shape)

    def inverse(self, x: Float[Array | np.ndarray, "n h w c"]) -> Float[Array, "n h w c"]:
        x = jnp.asarray(x, jnp.float32)
        flat = self._rescale(x.reshape(x.shape[0], -1), self.eigenvalues**0.5)
        return self.standardize.inverse((flat + _row(self.center, 2)).reshape(x.shape))

    def _rescale(self, flat: Float[Array, "n d"], scale: Float[Array, " d"]) -> Float[Array, "n d"]:
        # Full float32, or accelerators would round the factors to fewer bits and lose the inverse.
        along = jnp.matmul(flat, self.eigenvectors, precision="highest") * _row(scale, 2)
        return jnp.matmul(along, self.eigenvectors.T, precision="highest")


def standardize(images: Num[np.ndarray, "n h w c"]) -> Standardize:
    """Fit `Standardize` on training images."""
    mean, std = channel_statistics(images)
    return Standardize(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


def zca(images: Num[np.ndarray, "n h w c"], regularization: float = 0.1) -> ZCA:
    """Fit `ZCA` on training images, in float64: O(n d² + d³) for d = h w c.

    `ValueError` unless `regularization` is positive: pixels that never vary have eigenvalue 0.
    """
    if regularization <= 0:
        raise ValueError(f"regularization is {regularization}: make it positive, such as 0.1.")
    mean, std = channel_statistics(images)
    center, eigenvalues, eigenvectors = covariance_eigh(images, mean, std)
    average = eigenvalues.mean()
    eps = regularization * (average if average > 1e-12 else 1.0)  # else nothing ever varies
    return ZCA(
        Standardize(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)),
        jnp.asarray(center, jnp.float32),
        jnp.asarray(eigenvectors, jnp.float32),
        jnp.asarray(np.maximum(eigenvalues, 0) + eps, jnp.float32),
        float(regularization),
    )


def default_preprocess(images: Num[np.ndarray, "n h w c"]) -> Standardize | ZCA:
    """What works best as a rule: `standardize` for one channel, `zca` for more."""
    return standardize(images) if images.shape[-1] == 1 else zca(images)


def apply_in_chunks(
    preprocess: AbstractPreprocess, images: Num[np.ndarray, "n h w c"], *, chunk: int = 2048
) -> Float[np.ndarray, "n h w c"]:
    """`preprocess(images)` as a float32 numpy array, `chunk` images at a time to spare memory."""
    call = eqx.filter_jit(preprocess)
    out = np.empty(images.shape, np.float32)
    for start in range(0, len(images), chunk):
        out[start : start + chunk] = call(images[start : start + chunk])
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
    if kind not in ("identity", "standardize", "zca"):
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
        return ZCA(scale, *spectrum, float(config["regularization"]))
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


def to_unit(images: Images) -> Float[Array, "n h w c"]:
    """Float32 pixels in units of [0, 1]: uint8 is divided by 255, floats are taken as they are."""
    if images.dtype == jnp.uint8:
        return jnp.asarray(images, jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}: pass uint8 in [0, 255] or floats in [0, 1].")
    return jnp.asarray(images, jnp.float32)


def _row(vector: Float[Array, " d"], ndim: int) -> Float[Array, "..."]:
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def _arrays(module: eqx.Module, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(module, name)) for name in names}
