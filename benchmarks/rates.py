"""The learning rates that the search before a run finds, network by network.

    python benchmarks/rates.py --images-per-class 1
    python benchmarks/rates.py --images-per-class 10 --methods vig

A run searches on the one network that its first step draws (paper, appendix C). For each of some
untrained networks, on the same real set and outer batch, the rates found for Adam's inner and
inverse-Hessian steps; and, for inner rates of 1, 2, 4, … times 1e-5, whether the inner loss fell at
every step (+), ended below its start (·) or above it (×). Those that the search looked at no more,
having met one that is not monotone, are among them.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from _common import pool_network, print_header, setting
from rcig_eqx import convnet_for, methods
from rcig_eqx.solvers import Adam

METHODS = {name: make for name, make in methods.METHODS.items() if make().adapts}
RATES = 1e-5 * 2.0 ** np.arange(13)


@eqx.filter_jit
def found(method, problem):
    """The inner and the inverse-Hessian rate."""
    tuned = method.tune(*problem)
    return tuned.inner.learning_rate, tuned.solver.learning_rate


@eqx.filter_jit
def scan(method, problem):
    """Whether the inner loss is monotone, and whether it diverges, at each of `RATES`."""

    def at(rate):
        inner = eqx.tree_at(lambda adam: adam.learning_rate, Adam(1.0), rate)
        with_rate = eqx.tree_at(lambda m: (m.inner, m.solver), method, (inner, Adam(steps=0)))
        stats = with_rate.hypergradient(*problem, key=jax.random.key(0)).stats
        return stats["inner_monotone"], stats["inner_diverged"]

    return jax.lax.map(at, jnp.asarray(RATES, jnp.float32))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    print_header(f"{args}")
    _, coreset, images, targets = setting(args.images_per_class, 64)
    _, rows, columns, channels = images.shape
    make = convnet_for((rows, columns, channels), targets.shape[1], width=32)
    for name in args.methods:
        print(f"{name}: inner rate, inverse-Hessian rate, inner losses at 1e-5 to {RATES[-1]:.0e}")
        for seed in range(args.networks):
            model = pool_network(make, *coreset.support(), 0, seed=seed)
            method, problem = METHODS[name](), (model, coreset, images, targets)
            inner, inverse = found(method, problem)
            monotone, diverged = scan(method, problem)
            marks = np.where(monotone, "+", np.where(diverged, "×", "·"))
            print(f"{inner:9.2g} {inverse:9.2g}   {''.join(marks)}", flush=True)


if __name__ == "__main__":
    main()
