"""Random real images."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, PRNGKeyArray

from .._coreset import Coreset, centered_labels
from ..data import AbstractPreprocess, Dataset
from ._initializer import AbstractInitializer


class Real(AbstractInitializer):
    """The very images that a result is compared with, but for noise on those that come again."""

    def __call__(self, train, like, preprocess, *, key):
        again = _repeats(train, like)
        if not again.any():
            return like
        noise = _NOISE * jr.normal(key, like.images.shape, like.images.dtype)
        rows = jnp.expand_dims(again, tuple(range(1, noise.ndim)))
        return eqx.tree_at(lambda c: c.images, like, like.images + jnp.where(rows, noise, 0))


def _repeats(train: Dataset, like: Coreset) -> Bool[np.ndarray, " n"]:
    """Which images of a set have been there before, since their class has too few: alike, they
    would have the same gradient and stay alike."""
    each = len(like.images) // like.num_classes
    members = np.bincount(train.labels, minlength=like.num_classes)
    return (np.arange(each) >= members[:, None]).ravel()


def real() -> Real:
    """Random real images of each class: the paper's starting point.

    A class with fewer images than are asked for gives them again, with noise of 0.1 added.
    """
    return Real()


_NOISE = 0.1  # of preprocessed images, whose deviation is about 1


def real_coreset(
    train: Dataset,
    images_per_class: int,
    preprocess: AbstractPreprocess,
    *,
    flip: bool = False,
    key: PRNGKeyArray,
) -> Coreset:
    """Random real images of each class: the paper's starting point, and the fair baseline.

    A class with fewer than `images_per_class` gives all that it has, again and again.
    """
    rng = np.random.default_rng(np.asarray(jr.bits(key, (4,), jnp.uint32)))
    chosen = train.subset(train.per_class(images_per_class, rng, repeat=True))
    return Coreset(
        preprocess(chosen.images),
        centered_labels(chosen.labels, train.num_classes),
        jnp.zeros((), jnp.float32),
        flip=flip,
    )
