"""`python -m data_cleaning`: wrong labels found, and what that is worth, as a table."""

import argparse
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console
from rich.table import Table

from rcig_eqx import data

from .cleaning import clean, fit, tune
from .labels import auc, corrupt, precision
from .problem import accuracy, equal_weights, examples


def main() -> None:
    """Corrupt Fashion-MNIST's labels, clean them, and print how well that went."""
    parser = argparse.ArgumentParser(prog="data_cleaning", description=__doc__)
    parser.add_argument("--train", type=int, default=200, help="training images of each class")
    parser.add_argument("--validation", type=int, default=30, help="clean images of each class")
    parser.add_argument("--wrong", type=float, default=0.4, help="fraction of wrong labels")
    parser.add_argument("--steps", type=int, default=30, help="steps down the hypergradient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=Path("weights.png"))
    given = parser.parse_args()

    rng = np.random.default_rng(given.seed)
    real, held_out = (data.load("fashion_mnist_small", split) for split in ("train", "test"))
    chosen = real.per_class(given.train + given.validation, rng).reshape(real.num_classes, -1)
    truth = real.subset(chosen[:, : given.train].ravel())
    judges = real.subset(chosen[:, given.train :].ravel())
    noisy, wrong = corrupt(truth, given.wrong, rng)

    preprocess, classes = data.standardize(real.images), real.num_classes
    validation, test = examples(judges, preprocess), examples(held_out, preprocess)
    found = clean(examples(noisy, preprocess), validation, classes, steps=given.steps)
    weights = np.asarray(found.psi.weights)

    sets = {
        "all labels as they are": noisy,
        "those of weight above ½": noisy.subset(np.flatnonzero(weights > 0.5)),
        "right ones alone (oracle)": noisy.subset(np.flatnonzero(~wrong)),
        "all, with true labels (oracle)": truth,
    }
    table = Table("trained on", "images", "test accuracy")
    for name, each in sets.items():
        tuned = tune(examples(each, preprocess), validation, classes)
        table.add_row(name, str(len(each)), f"{accuracy(tuned.classifier, test):.1%}")
    one, other = (examples(judges.subset(range(i, len(judges), 2)), preprocess) for i in (0, 1))
    tuned = tune(one, other, classes)
    psi = equal_weights(validation, float(jnp.exp(tuned.psi.log_l2)))
    alone = eqx.filter_jit(fit)(tuned.classifier, psi, validation)
    table.add_row("clean images alone", str(len(judges)), f"{accuracy(alone, test):.1%}")

    console = Console()
    console.print(table)
    console.print(
        f"A wrong label weighs less than a right one: AUC {auc(weights, wrong):.3f}. Of the "
        f"{wrong.sum()} lightest, {precision(weights, wrong):.1%} are wrong."
    )
    draw(noisy, weights, wrong, given.picture)
    console.print(f"{given.picture} has the weights, and the lightest images.")


def draw(
    noisy: data.Dataset,
    weights: Float[np.ndarray, " n"],
    wrong: Bool[np.ndarray, " n"],
    path: Path,
) -> None:
    """A histogram of the weights, and the ten lightest images with the labels they were given."""
    figure = plt.figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplot_mosaic("wwwwwwwwww;0123456789", height_ratios=[3, 1.4])
    axes["w"].hist([weights[~wrong], weights[wrong]], 40, label=["right label", "wrong label"])
    axes["w"].set(xlabel="weight of an example", ylabel="examples")
    axes["w"].legend()
    for place, i in enumerate(np.argsort(weights, kind="stable")[:10]):
        axis = axes[str(place)]
        axis.imshow(noisy.images[i, ..., 0], cmap="gray_r")
        axis.set_title(f"“{noisy.class_names[noisy.labels[i]]}”", fontsize=8)
        axis.set_axis_off()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
