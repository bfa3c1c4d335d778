"""What networks are trained on, and how: the rows of a judgement."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .._coreset import Coreset, hard_labels, has_hard_labels
from .._losses import InnerLoss
from ..data import Dataset, apply_in_chunks
from ..initializers import kmeans
from ._evaluate import random_draws
from ._train_network import Training, cross_entropy, mean_squared, usual_training

LEARNED, HARD = "distilled, learned labels", "distilled, hard labels"
RANDOM, BITS = "random real, as many images", "random real, as many bits"
CENTROIDS, FULL = "k-means centroids", "all training data"
OF_ALL: dict[str, Any] = {"batch_size": 256, "learning_rate": 1e-3}


class Asked(NamedTuple):
    """What was asked of the training on sets; `None` for the default of their size."""

    steps: int | None
    learning_rate: float | None
    loss: InnerLoss

    def training(self, count: int) -> Training:
        """Of networks on so many images."""
        return usual_training(count, self.loss, steps=self.steps, learning_rate=self.learning_rate)


class Kind(NamedTuple):
    """What networks are trained on, and how: a row. One without sets is not trained on."""

    name: str
    images_per_class: int | None
    sets: Sequence[Coreset]
    training: Training
    note: str = ""


def largest_count(coreset: Coreset, bits: int | None) -> int:
    """How many images per class are compared with at most."""
    return max(len(coreset.images) // coreset.num_classes, (bits or 0) // _bits_of_real(coreset))


def _bits_of_real(coreset: Coreset) -> int:
    """What a real image takes: 8 bits per pixel and its class; other inputs 32 per number."""
    shape = coreset.images.shape[1:]
    width = 8 if len(shape) == 3 else 32
    return width * math.prod(shape) + (coreset.num_classes - 1).bit_length()


def rows_of_size(
    coreset: Coreset,
    train: Dataset,
    asked: Asked,
    bits: int | None,
    networks: int,
    key: PRNGKeyArray,
) -> list[Kind]:
    """The distilled set, and what it is compared with that is as large."""
    each, plain = len(coreset.images) // coreset.num_classes, asked.training(len(coreset.images))
    hard = plain._replace(loss=cross_entropy)
    draws = random_draws(coreset, train, each, networks, key)
    same = plain.loss is cross_entropy and has_hard_labels(coreset)
    kinds = [
        Kind(LEARNED, each, [_targets(coreset, plain)], plain),
        Kind(HARD, each, () if same else [hard_labels(coreset)], hard),
        Kind(RANDOM, each, [_targets(draw, plain) for draw in draws], plain),
    ]
    fit = (bits or 0) // _bits_of_real(coreset)
    most = min(fit, int(np.bincount(train.labels, minlength=coreset.num_classes).min()))
    if most in (0, each):
        note = "as above" if most else "none fits" if bits else "pass bits_per_class"
        kinds.append(Kind(BITS, most, (), plain, note))
    else:
        own_key = jr.fold_in(key, 2**31 + 2)
        more = random_draws(coreset, train, most, networks, own_key)
        own = asked.training(most * coreset.num_classes)
        note = f"{networks}, all there are" if most < fit else ""
        kinds.append(Kind(BITS, most, [_targets(draw, own) for draw in more], own, note))
    assert coreset.preprocess is not None
    if each > int(np.bincount(train.labels, minlength=coreset.num_classes).min()):
        return [*kinds, Kind(CENTROIDS, each, (), plain, "a class has fewer images")]
    try:
        clusters = kmeans()
    except ImportError as error:
        return [*kinds, Kind(CENTROIDS, each, (), plain, str(error))]
    own_key = jr.fold_in(key, 2**31 + 1)
    centers = clusters(train, draws[0], coreset.preprocess, key=own_key)
    return [*kinds, Kind(CENTROIDS, each, [_targets(centers, plain)], plain)]


def _targets(coreset: Coreset, training: Training) -> Coreset:
    """The set as it is, but for hard labels: they are one-hot for any loss but the squared error,
    for which they are one-hot − 1/C."""
    as_is = training.loss is mean_squared or not has_hard_labels(coreset)
    return coreset if as_is else hard_labels(coreset)


def row_of_all(coreset: Coreset, train: Dataset, epochs: int) -> Kind:
    """All training data, by minibatches."""
    assert coreset.preprocess is not None
    images = jnp.asarray(apply_in_chunks(coreset.preprocess, train.images))
    labels = jax.nn.one_hot(train.labels, coreset.num_classes, dtype=jnp.float32)
    rate, batch = OF_ALL["learning_rate"], OF_ALL["batch_size"]
    training = Training(max(1, epochs * len(train) // batch), rate, batch, cross_entropy, None)
    return Kind(FULL, None, [Coreset(images, labels, jnp.zeros(()))], training)
