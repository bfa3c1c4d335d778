"""ψ: the distilled images, their learned labels, and the Platt temperature."""

import abc
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, PyTree

from ._checks import check_number
from ._types import named
from .data import AbstractPreprocess, Dataset
from .data._arrays import plain_array

Initialization = Literal["real", "noise"]


class Coreset(eqx.Module):
    """A distilled set, class after class.

    - `images`: preprocessed images X_S `[n h w c]`; `preprocess.inverse` gives pixels.
    - `labels`: y_S `[n classes]`, one row an image. They start as one-hot − 1/C and are learned:
      they need not be positive nor sum to one.
    - `log_temperature`: log τ, the Platt scaling of the outer loss.
    - `preprocess`: what the images went through and a test image must; `None` inside the loop.
    - `flip`: whether the set stands for itself and its mirror images: networks are then trained on
      both. `distill` turns it on for RGB sets of up to 1,000 images. State it for a set made by
      hand, as whoever made the images did: a set distilled with mirror images loses half of its
      accuracy without them. It is `False` if not stated.

    Raises `ValueError` for numpy arrays that JAX does not take: masked ones, floats of more than 64
    bits, another byte order.
    """

    images: Float[Array, "n h w c"]
    labels: Float[Array, "n classes"]
    log_temperature: Float[Array, ""]
    preprocess: AbstractPreprocess | None = None
    flip: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        for name in ("images", "labels", "log_temperature"):
            array = getattr(self, name)
            if plain_array(array, name) is not array:
                raise ValueError(
                    f"{name} is {array.dtype} {type(array).__name__}, which JAX does not take: "
                    f"pass {name}.astype(np.float32)."
                )

    def support(self) -> tuple[Float[Array, "m h w c"], Float[Array, "m classes"]]:
        """The images and labels to train on: mirrored copies are appended under `flip`."""
        if not self.flip:
            return self.images, self.labels
        images = jnp.concatenate([self.images, self.images[:, :, ::-1]])
        return images, jnp.concatenate([self.labels, self.labels])

    @property
    def num_classes(self) -> int:
        """The length of a label."""
        return self.labels.shape[-1]


def hard_labels(coreset: Coreset) -> Coreset:
    """The same images with one-hot labels of the class that each learned label ranks first."""
    top = jnp.argmax(coreset.labels, axis=-1)
    one_hot = jax.nn.one_hot(top, coreset.num_classes, dtype=coreset.labels.dtype)
    return eqx.tree_at(lambda c: c.labels, coreset, one_hot)


def check_coreset(coreset: Any, name: str) -> None:
    """Raise `ValueError` for what is no `Coreset`, or has arrays that no network can train on."""
    if not isinstance(coreset, Coreset):
        raise ValueError(
            f"{name} is a {type(coreset).__name__}: pass what distill or load_result returned."
        )
    images, labels = np.shape(coreset.images), np.shape(coreset.labels)
    if len(images) != 4 or len(labels) != 2 or labels[0] != images[0]:
        raise ValueError(
            f"{name} has images {images} and labels {labels}: make them [n h w c] and [n classes], "
            "one row of labels per image."
        )
    for field in ("images", "labels"):
        if not jnp.issubdtype(getattr(coreset, field).dtype, jnp.floating):
            raise ValueError(
                f"{name} has {field} of {getattr(coreset, field).dtype}: make them floats; images "
                "are preprocessed, and labels are targets such as centred_labels(labels, classes)."
            )
    check_finite(coreset, name)


def check_finite(coreset: Coreset, name: str) -> None:
    """Raise `ValueError` for images, labels or a temperature that are not finite."""
    for field in ("images", "labels", "log_temperature"):
        if not np.isfinite(getattr(coreset, field)).all():
            raise ValueError(f"{name} has {field} that are NaN or infinite.")


class AbstractParameterization(eqx.Module):
    """What is optimised in place of images and labels: ψ, and the set it stands for.

    Subclass it to distil half the pixels, a shared basis, or a generator's inputs. The method's
    gradient goes back through `decode`, which must be pure; the optimiser, the average and a
    rejected step work on ψ.
    """

    @abc.abstractmethod
    def encode(self, coreset: Coreset) -> PyTree:
        """ψ to start from, floating-point arrays in any pytree, for a set of images and labels."""

    @abc.abstractmethod
    def decode(self, psi: PyTree) -> Coreset:
        """The set that ψ stands for: images of the size of the real ones, class after class.

        There may be any number of each class, the same of all.
        """


def fold_temperature(coreset: Coreset) -> Coreset:
    """The same set with labels y_S · τ and log τ = 0, where τ multiplies the predictions.

    To the linearised inner problem and the ridge head the two are one: predictions are linear in
    the labels, and the outer loss sees them times τ. A network trained on the set adds its random
    initial function to what it learns, and labels of the scale of logits leave that the smaller
    part. Not in the paper.
    """
    scale = jnp.exp(coreset.log_temperature)
    return eqx.tree_at(
        lambda c: (c.labels, c.log_temperature),
        coreset,
        (coreset.labels * scale, jnp.zeros_like(coreset.log_temperature)),
    )


def centred_labels(
    labels: Integer[Array | np.ndarray, " n"], num_classes: int
) -> Float[Array, "n classes"]:
    """one-hot − 1/C, as in the authors' code; the paper does not say."""
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) - 1 / num_classes


def real_coreset(
    train: Dataset,
    images_per_class: int,
    preprocess: AbstractPreprocess,
    *,
    flip: bool = False,
    key: PRNGKeyArray,
) -> Coreset:
    """Random real images of each class: the paper's starting point, and the fair baseline."""
    rng = np.random.default_rng(np.asarray(jr.bits(key, (4,), jnp.uint32)))
    chosen = train.subset(train.per_class(images_per_class, rng))
    return Coreset(
        preprocess(chosen.images),
        centred_labels(chosen.labels, train.num_classes),
        jnp.zeros((), jnp.float32),
        flip=flip,
    )


def noise_coreset(like: Coreset, *, key: PRNGKeyArray) -> Coreset:
    """Standard normal images in the place of those of `like`."""
    images = jr.normal(key, like.images.shape, like.images.dtype)
    return eqx.tree_at(lambda c: c.images, like, images)


def check_initialization(initialization: Any) -> None:
    """Raise `ValueError` for an initialisation that does not exist."""
    if isinstance(initialization, Coreset) or callable(initialization):
        return
    if not (isinstance(initialization, str) and initialization in get_args(Initialization)):
        raise ValueError(
            f"initialization={initialization!r} is unknown; use one of "
            f"{get_args(Initialization)}, a Coreset, or a function from a key to one."
        )


def starting_coreset(given: Any, baseline: Coreset, *, key: PRNGKeyArray) -> Coreset:
    """The set to start from: real images, noise in their place, or the caller's own.

    `ValueError` for a set of another size than `baseline`, or one that is not finite.
    """
    if isinstance(given, str):
        return baseline if given == "real" else noise_coreset(baseline, key=key)
    if not isinstance(given, Coreset):
        raise ValueError(f"initialization made a {type(given).__name__}: it must make a Coreset.")
    for name in ("images", "labels", "log_temperature"):
        own, right = getattr(given, name), getattr(baseline, name)
        if np.shape(own) != right.shape:
            raise ValueError(
                f"initialization has {name} {np.shape(own)}, where images_per_class and the data "
                f"make them {right.shape}: pass preprocessed images [n h w c], labels [n classes]."
            )
    check_finite(given, "initialization")
    fields = (given.images, given.labels, given.log_temperature)
    images, labels, log_temperature = (jnp.asarray(x, jnp.float32) for x in fields)
    return Coreset(images, labels, log_temperature, flip=baseline.flip)


def check_parameterization(parameterization: AbstractParameterization, start: Coreset) -> Coreset:
    """The structure of the set that ψ stands for; `ValueError` if it is none for this data."""
    psi = eqx.filter_eval_shape(parameterization.encode, start)
    dtypes = [getattr(x, "dtype", None) for x in jax.tree.leaves(psi)]
    if not all(dtype is not None and jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(
            "encode must return floating-point arrays alone: keep all else in fields of the "
            "parameterization."
        )
    decoded = eqx.filter_eval_shape(parameterization.decode, psi)
    if not isinstance(decoded, Coreset):
        raise ValueError(f"decode returned a {type(decoded).__name__}: it must return a Coreset.")
    n = decoded.images.shape[:1]
    wanted = (n + start.images.shape[1:], n + start.labels.shape[1:], (), start.flip)
    got = (
        decoded.images.shape,
        decoded.labels.shape,
        decoded.log_temperature.shape,
        decoded.flip,
    )
    if got != wanted:
        raise ValueError(
            f"decode made images, labels, log_temperature and flip of {got}, where these data need "
            f"{wanted}: change the images of the coreset that encode was given, as with "
            "equinox.tree_at, and leave the rest."
        )
    if decoded.images.shape[0] % decoded.num_classes:
        raise ValueError(
            f"decode made {decoded.images.shape[0]} images of {decoded.num_classes} classes: make "
            "as many of each, class after class."
        )
    dtypes = {str(x.dtype) for x in jax.tree.leaves(decoded)}
    if dtypes != {"float32"}:
        raise ValueError(f"decode made arrays of {sorted(dtypes)}: make them float32.")
    return decoded


@functools.cache
def ema(decay: float) -> Callable[[Array], Array]:
    """Weights of an exponential moving average with bias correction (0.99 in the authors' code).

    Returns a function from the number of iterates averaged so far to the weight of the next.
    """
    check_number("decay", decay, lambda d: 0 <= d < 1, "in [0, 1)")
    return named(f"ema({decay:g})", lambda count: (1 - decay) / (1 - decay ** (count + 1.0)))


@functools.cache
def growing_average(sharpness: float = 9.0) -> Callable[[Array], Array]:
    """Weights of an average whose window grows with the run: about the last 1/(sharpness+1).

    Polynomial-decay averaging (Shamir and Zhang, 2013): forgets the start however long the run,
    where a fixed decay lags badly in a short one.
    """
    check_number("sharpness", sharpness, lambda s: s >= 0, "a number of at least 0")
    weight = lambda count: (sharpness + 1.0) / (count + sharpness + 1.0)  # noqa: E731
    return named(f"growing_average({sharpness:g})", weight)
