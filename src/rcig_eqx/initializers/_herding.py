"""Herded images."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._subsample import in_chunks
from ..data import apply_in_chunks
from ..models import AbstractNetwork, MakeModel, with_statistics
from ._initializer import AbstractInitializer, images_of_classes


class Herding(AbstractInitializer):
    """Real images whose mean is closest to that of their class, with the labels of real ones."""

    model: MakeModel | None = None

    def __call__(self, train, like, preprocess, *, key):
        each = len(like.images) // like.num_classes
        network = self.model and with_statistics(self.model(key), like.images)
        chosen = []
        for images in images_of_classes(train, like):
            inputs = apply_in_chunks(preprocess, images)
            features = inputs.reshape(len(inputs), -1)
            if network is not None:
                features = np.asarray(eqx.filter_jit(_features)(network, jnp.asarray(inputs)))
            chosen.append(inputs[herd(features, each)])
        images = jnp.asarray(np.concatenate(chosen), like.images.dtype)
        return eqx.tree_at(lambda c: c.images, like, images)


def herding(model: MakeModel | None = None) -> Herding:
    """Real images of each class, picked so that their mean is close to that of the class.

    One after another, each brings the mean of those picked as close as one image can (Welling,
    2009; as in iCaRL, Rebuffi et al., 2017). Distances are between preprocessed images, or with
    `model`, a function from a key to a network, between features of one random network.
    """
    return Herding(model)


def _features(network: AbstractNetwork, inputs: Float[Array, "n *shape"]) -> Array:
    return in_chunks(network.features, inputs)


def herd(features: Float[np.ndarray, "n d"], count: int) -> Int[np.ndarray, " count"]:
    """The rows that greedily bring their mean closest to the mean of all, in order.

    After k rows with the sum s, the next one minimizes ‖(k+1) mean − s − row‖.
    """
    mean, squares = features.mean(0), np.square(features).sum(1)
    left, picked = np.zeros_like(mean), []
    for _ in range(count):
        left = left + mean
        distances = squares - 2 * features @ left
        distances[picked] = np.inf
        picked.append(int(np.argmin(distances)))
        left = left - features[picked[-1]]
    return np.array(picked)
