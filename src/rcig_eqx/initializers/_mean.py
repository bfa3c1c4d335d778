"""Class means."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._augment import Augmentation, check_augmentation
from .._checks import check_number
from ..data import apply_in_chunks
from ._initializer import AbstractInitializer, images_of_classes


class Mean(AbstractInitializer):
    """The mean of each class and variants of it, with the labels of real images."""

    spread: float = 0.3
    augment: Augmentation | None = None

    def __call__(self, train, like, preprocess, *, key):
        each, shape = len(like.images) // like.num_classes, like.images.shape[1:]
        members = images_of_classes(train, like)
        means = np.stack([np.mean(apply_in_chunks(preprocess, x), 0) for x in members])
        first = jnp.repeat(jnp.asarray(means, like.images.dtype), each, axis=0)
        if self.augment is None:
            others = first + self.spread * (like.images - first)
        else:
            check_augmentation(self.augment, first.shape)
            others = self.augment(first, key=key)
        is_first = (jnp.arange(len(first)) % each == 0).reshape(-1, *[1] * len(shape))
        return eqx.tree_at(lambda c: c.images, like, jnp.where(is_first, first, others))


def mean(spread: float = 0.3, augment: Augmentation | None = None) -> Mean:
    """The mean of each class's preprocessed images first, then variants of it.

    A variant lies `spread` of the way from the mean to a random real image of the class. With
    `augment`, such as an [`Augment`][rcig_eqx.evaluation.Augment], it is the mean changed at random
    instead.
    """
    check_number("spread", spread, lambda s: 0 < s <= 1, "in (0, 1]")
    return Mean(float(spread), augment)
