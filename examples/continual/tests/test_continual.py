"""Tasks and memories are what they say, and distilled images are worth more than random ones."""

import jax.random as jr
import numpy as np
import pytest

from continual import NewImages, accuracies, distill_task, empty, extend, random_real, split, up_to
from continual.memory import with_memory
from rcig_eqx import data
from rcig_eqx.io import to_pixels


def test_tasks_share_no_image_and_leave_none_out():
    train = data.load("fashion_mnist_small")
    tasks = split(train, 5)
    assert [task.classes for task in tasks] == [range(5), range(5, 10)]
    assert sum(len(task.data) for task in tasks) == len(train)
    assert set(tasks[1].data.labels) == set(range(5, 10))
    assert tasks[0].data.class_names == train.class_names[:5]
    assert len(up_to(train, 5)) == len(tasks[0].data)
    with pytest.raises(ValueError, match="classes_per_task is 3"):
        split(train, 3)


def test_the_memory_stands_in_for_earlier_classes():
    first, second = split(data.load("fashion_mnist_small"), 5)
    preprocess = data.standardize(first.data.images)
    start = empty(first.data.image_shape, preprocess)
    memory = random_real(start, first, 2, key=jr.key(0))
    both = with_memory(memory, second)
    assert np.ptp(np.bincount(both.labels)) == 0
    kept = to_pixels(memory.coreset)
    np.testing.assert_array_equal(both.images[both.labels == 3][:2], kept[6:8])
    assert len(extend(memory, memory.images, second).coreset.images) == 20


def test_new_images_move_and_earlier_ones_stay():
    images = jr.normal(jr.key(0), (4, 8, 8, 1))
    task = split(data.load("fashion_mnist_small"), 2)[1]
    start = extend(empty((8, 8, 1), data.Identity()), images, task).coreset
    psi = NewImages(start, 3).encode(start)
    decoded = NewImages(start, 3).decode(psi + 1)
    np.testing.assert_array_equal(decoded.images[:3], images[:3])
    np.testing.assert_array_equal(decoded.images[3:], images[3:] + 1)
    np.testing.assert_array_equal(decoded.labels, start.labels)


def test_distilled_images_are_worth_more_than_random_ones():
    train, held_out = (data.load("fashion_mnist_small", part) for part in ("train", "test"))
    first, second, *_ = split(train, 2)
    start = empty(train.image_shape, data.standardize(first.data.images))
    memory = random_real(start, first, 1, key=jr.key(0))
    real = random_real(memory, second, 1, key=jr.key(1))
    distilled = distill_task(
        memory, second, 1, key=jr.key(1), steps=100, width=4, depth=1, progress=False
    )
    np.testing.assert_array_equal(distilled.images[:2], memory.images)
    assert distilled.num_classes == 4
    worth, baseline = (
        accuracies(
            each, up_to(held_out, 4), key=jr.key(2), networks=2, steps=100, width=4, depth=1
        ).mean()
        for each in (distilled, real)
    )
    assert worth > baseline + 0.05
