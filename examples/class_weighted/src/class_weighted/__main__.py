"""`python -m class_weighted`: what weighing a class up does to its recall, as a table."""

import argparse
from pathlib import Path

import jax.random as jr
from rich.console import Console
from rich.table import Table

from rcig_eqx import data, save_grid

from .run import distill_weighted, measure, one_class


def main() -> None:
    """Distill Fashion-MNIST with equal and with unequal class weights, and compare."""
    parser = argparse.ArgumentParser(prog="class_weighted", description=__doc__)
    parser.add_argument("--class", dest="name", default="Shirt", help="the class to weigh up")
    parser.add_argument("--weight", type=float, default=5.0, help="how many times it counts")
    parser.add_argument("--steps", type=int, default=40, help="distillation steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=Path("class_weighted.png"))
    given = parser.parse_args()

    train, held_out = (data.load("fashion_mnist_small", split) for split in ("train", "test"))
    keys = jr.split(jr.key(given.seed))
    results = [
        distill_weighted(
            train, one_class(train, given.name, weight), key=keys[0], steps=given.steps
        )
        for weight in (1.0, given.weight)
    ]
    equal, weighted = (measure(result, held_out, key=keys[1]) for result in results)

    over = f"± is the standard deviation over {len(equal.accuracies)} networks"
    columns = ("recall", "equal weights", f"{given.name} × {given.weight:g}")
    table = Table(*columns, caption=over)
    for c, name in enumerate(train.class_names):
        style = "bold" if name == given.name else None
        recalls = (f"{each.per_class[:, c].mean():.1%}" for each in (equal, weighted))
        table.add_row(name, *recalls, style=style)
    accuracies = (f"{each.mean:.1%} ± {each.std:.1%}" for each in (equal, weighted))
    table.add_row("all: accuracy", *accuracies)
    Console().print(table)
    save_grid(results[1].coreset, train.class_names, given.picture)
    print(f"{given.picture} has the images distilled with {given.name} × {given.weight:g}.")


if __name__ == "__main__":
    main()
