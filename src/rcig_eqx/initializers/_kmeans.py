"""Cluster centers."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..data import apply_in_chunks
from ._initializer import AbstractInitializer, images_of_classes


class KMeans(AbstractInitializer):
    """The centers of clusters of each class, with the labels of real images."""

    def __call__(self, train, like, preprocess, *, key):
        cluster, each = _sklearn_cluster(), len(like.images) // like.num_classes
        seeds = np.asarray(jr.bits(key, (like.num_classes,), jnp.uint32)).tolist()
        centers = []
        for images, seed in zip(images_of_classes(train, like), seeds, strict=True):
            flat = apply_in_chunks(preprocess, images).reshape(len(images), -1)
            means = cluster.KMeans(each, n_init=1, random_state=seed).fit(flat).cluster_centers_
            centers.append(means.reshape(each, *images.shape[1:]))
        images = jnp.asarray(np.concatenate(centers), like.images.dtype)
        return eqx.tree_at(lambda c: c.images, like, images)


def kmeans() -> KMeans:
    """The centers of as many clusters of each class's preprocessed images as are distilled.

    Needs scikit-learn, the extra `judge`.
    """
    _sklearn_cluster()  # told before any work
    return KMeans()


def _sklearn_cluster() -> Any:
    try:
        import sklearn.cluster
    except ImportError as error:
        raise ImportError("k-means needs scikit-learn: pip install 'rcig-eqx[judge]'.") from error
    return sklearn.cluster
