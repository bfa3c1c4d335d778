"""`python -m layer_l2`: the comparison, as a table."""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from rich.console import Console
from rich.table import Table

from rcig_eqx import convnet_for, data

from .problem import accuracy, examples, fit
from .search import Found, cube, descend, grid


def main() -> None:
    """Search on Fashion-MNIST, and print what was found."""
    parser = argparse.ArgumentParser(prog="layer_l2", description=__doc__)
    parser.add_argument("--train", type=int, default=10, help="training images of each class")
    parser.add_argument("--validation", type=int, default=30, help="validation images of each")
    parser.add_argument("--steps", type=int, default=20, help="steps down the hypergradient")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    real, held_out = (data.load("fashion_mnist_small", split) for split in ("train", "test"))
    chosen = real.per_class(given.train + given.validation, np.random.default_rng(given.seed))
    of_class = chosen.reshape(real.num_classes, -1)
    splits = (
        real.subset(of_class[:, : given.train].ravel()),
        real.subset(of_class[:, given.train :].ravel()),
        held_out,
    )
    make_network = convnet_for(real.image_shape, real.num_classes, width=4, softplus=None)
    network, preprocess = make_network(jr.key(given.seed)), data.standardize(real.images)
    at = eqx.filter_jit(examples)
    train, validation, test = (at(network, split, preprocess) for split in splits)

    layers = len(train.jacobian)
    shared = [jnp.full(layers, value) for value in np.linspace(-4, 2, 13)]
    found = {
        "hypergradient": descend(jnp.zeros(layers), train, validation, steps=given.steps),
        "one λ for all": grid(shared, train, validation),
        f"grid of 4^{layers}": grid(cube([-4.0, -2.0, 0.0, 2.0], layers), train, validation),
    }
    table = Table("search", "solves", "loss", "accuracy", "λ by layer")
    for name, each in found.items():
        theta = fit(each.log_l2, train)
        table.add_row(name, *row(each, float(accuracy(theta, test, real.num_classes))))
    Console().print(table)


def row(found: Found, test_accuracy: float) -> tuple[str, ...]:
    """A search's cells in the table."""
    weights = " ".join(f"{weight:.2g}" for weight in jax.device_get(jnp.exp(found.log_l2)))
    return str(found.solves), f"{found.loss:.5f}", f"{test_accuracy:.1%}", weights


if __name__ == "__main__":
    main()
