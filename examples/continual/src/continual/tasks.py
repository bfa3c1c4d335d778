"""A data set that arrives a few classes at a time."""

import dataclasses

import numpy as np

from rcig_eqx.data import Dataset


@dataclasses.dataclass(frozen=True)
class Task:
    """The images of some classes, numbered on from those of earlier tasks."""

    classes: range
    data: Dataset


def split(data: Dataset, classes_per_task: int) -> list[Task]:
    """Tasks of as many classes each, in the order of their numbers."""
    if not 1 <= classes_per_task <= data.num_classes or data.num_classes % classes_per_task:
        raise ValueError(
            f"classes_per_task is {classes_per_task}: it must divide the {data.num_classes} "
            "classes."
        )
    firsts = range(0, data.num_classes, classes_per_task)
    groups = [range(first, first + classes_per_task) for first in firsts]
    return [Task(group, _of(data, group)) for group in groups]


def up_to(data: Dataset, num_classes: int) -> Dataset:
    """The images of the first classes alone."""
    return _of(data, range(num_classes))


def _of(data: Dataset, classes: range) -> Dataset:
    chosen = data.subset(np.flatnonzero(np.isin(data.labels, list(classes))))
    return dataclasses.replace(chosen, class_names=data.class_names[: classes.stop])
