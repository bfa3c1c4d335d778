"""Random numbers."""

import equinox as eqx
import jax.random as jr

from ._initializer import AbstractInitializer


class Noise(AbstractInitializer):
    """Standard normal images, with the labels of real ones."""

    def __call__(self, train, like, preprocess, *, key):
        images = jr.normal(key, like.images.shape, like.images.dtype)
        return eqx.tree_at(lambda c: c.images, like, images)


def noise() -> Noise:
    """Standard normal images, with the labels of real ones."""
    return Noise()
