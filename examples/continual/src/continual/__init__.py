"""Class-incremental learning with a memory of distilled images."""

from .learn import accuracies as accuracies
from .memory import (
    Memory as Memory,
    NewImages as NewImages,
    distill_task as distill_task,
    empty as empty,
    extend as extend,
    random_real as random_real,
)
from .tasks import Task as Task, split as split, up_to as up_to
