"""What is kept of earlier classes: a few images of each, real ones or distilled ones.

Images of a new task are distilled in the company of the memory: a network learns from both, and is
judged on the task's real images and, for the earlier classes, of which no real ones are left, on
the memory itself. So the new images tell their classes from the earlier ones too.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rcig_eqx import Coreset, PoolSchedule, Recipe, convnet_for, distill, methods
from rcig_eqx.data import AbstractPreprocess, Dataset
from rcig_eqx.initializers import centered_labels, real_coreset
from rcig_eqx.io import to_pixels
from rcig_eqx.parameterizations import AbstractParameterization

from .tasks import Task


class Memory(eqx.Module):
    """Images of all classes seen, class after class, as many of each."""

    images: Float[Array, "n h w c"]
    num_classes: int
    preprocess: AbstractPreprocess

    @property
    def coreset(self) -> Coreset:
        """The same with centered one-hot labels, to train on."""
        each = len(self.images) // max(1, self.num_classes)
        labels = centered_labels(np.repeat(np.arange(self.num_classes), each), self.num_classes)
        return Coreset(self.images, labels, jnp.zeros(()), self.preprocess)


class NewImages(AbstractParameterization):
    """ψ is the images of the new classes; earlier ones and all labels stay as they are."""

    start: Coreset
    earlier: int = eqx.field(static=True)

    def encode(self, coreset: Coreset) -> Float[Array, "new h w c"]:
        return coreset.images[self.earlier :]

    def decode(self, psi: Float[Array, "new h w c"]) -> Coreset:
        images = jnp.concatenate([self.start.images[: self.earlier], psi])
        return Coreset(images, self.start.labels, self.start.log_temperature)


def empty(image_shape: tuple[int, ...], preprocess: AbstractPreprocess) -> Memory:
    """A memory before the first task."""
    return Memory(jnp.zeros((0, *image_shape)), 0, preprocess)


def extend(memory: Memory, images: Float[Array, "n h w c"], task: Task) -> Memory:
    """The memory with images of a task's classes."""
    joined = jnp.concatenate([memory.images, images])
    return Memory(joined, task.classes.stop, memory.preprocess)


def random_real(memory: Memory, task: Task, images_per_class: int, *, key: PRNGKeyArray) -> Memory:
    """The memory with random real images of a task: what distilled ones are compared with."""
    first = task.classes.start
    alone = Dataset(
        task.data.images, task.data.labels - first, task.data.class_names[first:], task.data.name
    )
    chosen = real_coreset(alone, images_per_class, memory.preprocess, key=key)
    return extend(memory, chosen.images, task)


def distill_task(
    memory: Memory,
    task: Task,
    images_per_class: int,
    *,
    key: PRNGKeyArray,
    steps: int = 100,
    width: int = 8,
    depth: int = 3,
    progress: bool = True,
) -> Memory:
    """The memory with distilled images of a task, which start as random real ones."""
    start = random_real(memory, task, images_per_class, key=key).coreset
    result = distill(
        with_memory(memory, task),
        images_per_class=images_per_class,
        key=key,
        method=methods.frepo(),
        model=convnet_for(task.data.image_shape, task.classes.stop, width=width, depth=depth),
        steps=steps,
        initialization=start,
        recipe=Recipe(
            parameterization=NewImages(start, len(memory.images)), pool=PoolSchedule(size=10)
        ),
        progress=progress,
    )
    return extend(memory, result.coreset.images[len(memory.images) :], task)


def with_memory(memory: Memory, task: Task) -> Dataset:
    """A task's images and the memory's, repeated until there are as many of each class."""
    images = np.asarray(task.data.images, np.float32) / 255
    labels = np.asarray(task.data.labels, np.int64)
    if memory.num_classes:
        wanted = len(images) // len(task.classes) * memory.num_classes
        kept = to_pixels(memory.coreset)
        rows = np.arange(wanted) % len(kept)
        images = np.concatenate([images, kept[rows]])
        labels = np.concatenate([labels, rows // (len(kept) // memory.num_classes)])
    return Dataset(images, labels, task.data.class_names, task.data.name)
