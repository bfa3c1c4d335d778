"""`python -m continual`: a distilled memory beside one of real images, as a table."""

import argparse
from pathlib import Path

import jax.random as jr
from jaxtyping import Array, Float
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rcig_eqx import data, save_grid

from .learn import accuracies
from .memory import distill_task, empty, random_real
from .tasks import split, up_to


def main() -> None:
    """Fashion-MNIST, two classes at a time, and the accuracy after each task."""
    parser = argparse.ArgumentParser(prog="continual", description=__doc__)
    parser.add_argument("--images-per-class", type=int, default=1, help="kept of each class")
    parser.add_argument("--classes-per-task", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="distillation steps of each task")
    parser.add_argument("--width", type=int, default=8, help="of the networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=Path("memory.png"))
    given = parser.parse_args()

    train, held_out = (data.load("fashion_mnist_small", part) for part in ("train", "test"))
    tasks = split(train, given.classes_per_task)
    preprocess = data.standardize(tasks[0].data.images)  # later tasks are not seen yet
    distilled = real = empty(train.image_shape, preprocess)
    each, width, test_key = given.images_per_class, given.width, jr.key(given.seed + 1)

    columns = ("after task", "classes", "distilled memory", "real memory")
    table = Table(*columns, caption="± is the standard deviation over the networks")
    for number, task in enumerate(track(tasks, "tasks"), 1):
        key = jr.fold_in(jr.key(given.seed), number)
        distilled = distill_task(
            distilled, task, each, key=key, steps=given.steps, width=width, progress=False
        )
        real = random_real(real, task, each, key=key)
        seen = up_to(held_out, task.classes.stop)
        found = (accuracies(kept, seen, key=test_key, width=width) for kept in (distilled, real))
        table.add_row(str(number), str(task.classes.stop), *map(said, found))
    Console().print(table)
    save_grid(distilled.coreset, train.class_names, given.picture)
    print(f"{given.picture} has the distilled memory.")


def said(found: Float[Array, " networks"]) -> str:
    """Mean and standard deviation over the networks."""
    return f"{found.mean():.1%} ± {found.std(ddof=1):.1%}"


if __name__ == "__main__":
    main()
