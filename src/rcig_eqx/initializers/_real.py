"""Random real images."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .._coreset import Coreset, centered_labels
from ..data import AbstractPreprocess, Dataset
from ._initializer import AbstractInitializer


class Real(AbstractInitializer):
    """The very images that a result is compared with."""

    def __call__(self, train, like, preprocess, *, key):
        return like


def real() -> Real:
    """Random real images of each class: the paper's starting point."""
    return Real()


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
        centered_labels(chosen.labels, train.num_classes),
        jnp.zeros((), jnp.float32),
        flip=flip,
    )
