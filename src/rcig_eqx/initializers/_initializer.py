"""What an initializer is, and what is asked of the set that it makes."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .._checks import ArgumentError
from .._coreset import Coreset, check_finite
from ..data import AbstractPreprocess, Dataset


class AbstractInitializer(eqx.Module):
    """Where a distilled set starts.

    Subclass it to start from images of your own, such as a generator's.
    """

    @property
    def preprocess(self) -> AbstractPreprocess | None:
        """The preprocessing that its images have had. `None`: that of the run."""
        return None

    @property
    def flip(self) -> bool | None:
        """Whether its set stands for its mirror images too. `None`: the run decides."""
        return None

    @abc.abstractmethod
    def __call__(
        self, train: Dataset, like: Coreset, preprocess: AbstractPreprocess, *, key: PRNGKeyArray
    ) -> Coreset:
        """The set to start from.

        **Arguments:**

        - `train`: the training images as they are, those in memory of a set on disk.
        - `like`: as many random real images of each class, preprocessed, class after class. What is
          returned has its shapes; a start of other images replaces these by `equinox.tree_at`.
        - `preprocess`: what real images go through.
        - `key`: source of all randomness.
        """


def images_of_classes(train: Dataset, like: Coreset) -> list[np.ndarray]:
    """The training images of each class `[m *shape]`, as they are.

    `ValueError` where a class has fewer than are to be started from.
    """
    each = len(like.images) // like.num_classes
    members = [train.images[train.labels == c] for c in range(like.num_classes)]
    if (least := min(map(len, members))) < each:
        name = train.class_names[int(np.argmin([len(m) for m in members]))]
        raise ArgumentError(
            "images_per_class",
            f"is {each}, and {name!r} has {least} images to start from: ask for at most as many.",
        )
    return members


class Given(AbstractInitializer):
    """A set made before."""

    coreset: Coreset

    @property
    def preprocess(self) -> AbstractPreprocess | None:
        return self.coreset.preprocess

    @property
    def flip(self) -> bool | None:
        return self.coreset.flip

    def __call__(self, train, like, preprocess, *, key):
        return self.coreset


def check_start(given: object, like: Coreset) -> Coreset:
    """The set to start from, in single precision.

    `ValueError` for a set of another size than `like`, or one that is not finite.
    """
    if not isinstance(given, Coreset):
        raise ValueError(f"initialization made a {type(given).__name__}: it must make a Coreset.")
    for name in ("images", "labels", "log_temperature"):
        own, right = getattr(given, name), getattr(like, name)
        if np.shape(own) != right.shape:
            raise ValueError(
                f"initialization has {name} {np.shape(own)}, where images_per_class and the data "
                f"make them {right.shape}: pass preprocessed ones."
            )
    check_finite(given, "initialization")
    fields = (given.images, given.labels, given.log_temperature)
    images, labels, log_temperature = (jnp.asarray(x, jnp.float32) for x in fields)
    return Coreset(images, labels, log_temperature, flip=like.flip)
