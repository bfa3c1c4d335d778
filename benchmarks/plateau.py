"""What keeps a distilled set where it is: its hypergradient's noise, and what networks make of it.

    rcig-eqx distill fashion_mnist --width 32 --steps 2100 --learning-rate 0.03 \
        --out runs/plateau
    python benchmarks/plateau.py runs/plateau/distilled.safetensors

First the exact hypergradient of `--draws` networks on as many outer batches each, for networks so
many pool steps old: the variance that is the network's, the batch's and their interaction's (a
two-way analysis of variance, summed over the numbers of the images or the labels); and how much of
a given network's would be left if the head-only gradient of the same batch, times its best factor,
were taken off and its mean over far more images put back: a control variate. Then the test accuracy
of networks of each age, linearized with the ridge solution on the set, by the ridge head alone, and
as they are. Where they agree with one another and with the accuracy on outer batches, neither
evaluation nor generalization is what holds the set back. Networks are trained on the set as it was
returned, averaged and with the temperature in its labels, not on a run's last iterate.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np

from _common import pool_network, print_header
from rcig_eqx import convnet_for, data, load_result, methods, platt_loss
from rcig_eqx.data import apply_in_chunks
from rcig_eqx.methods import linearize, ridge_head
from rcig_eqx.operators import NTK


def components(draws):
    """The network's variance, the batch's and their interaction's, `[networks batches numbers]`."""
    n, b, _ = draws.shape
    mean = draws.mean((0, 1))
    network, batch = draws.mean(1) - mean, draws.mean(0) - mean
    rest = draws - draws.mean(1, keepdims=True) - draws.mean(0)[None] + mean

    def square(x):
        return (x**2).sum(-1).mean()

    interaction = square(rest) * n * b / ((n - 1) * (b - 1))
    of_network = square(network) * n / (n - 1) - interaction / b
    of_batch = square(batch) * b / (b - 1) - interaction / n
    return of_network, of_batch, interaction


def left_by_control(draws, controls):
    """Share of the variance over batches that a control variate leaves, both as above."""
    off, of_control = (x - x.mean(1, keepdims=True) for x in (draws, controls))
    return 1 - (off * of_control).sum() ** 2 / ((off**2).sum() * (of_control**2).sum())


@eqx.filter_jit
def accuracies(model, X_S, y_S, images, labels):
    """Of the linearized network, the ridge head on its features, and the network itself."""
    l2 = 5e-4 * len(y_S)
    at_S = linearize(model, X_S)
    alpha = lx.linear_solve(NTK(model, X_S, l2, linearization=at_S), y_S, lx.Cholesky()).value
    linear = linearize(model, images).jvp(at_S.vjp(alpha))
    head = model.features(images) @ ridge_head(at_S.features, y_S, l2)
    return [jnp.mean(jnp.argmax(f, -1) == labels) for f in (linear, head, model(images))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path, help="what distill saved")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--ages", type=int, nargs="+", default=[0, 5, 60, 200])
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    print_header(f"{args}")
    train, test = (data.load(args.dataset, split) for split in ("train", "test"))
    coreset = load_result(args.set).coreset
    assert coreset.preprocess is not None
    X_S, y_S = coreset.support()
    rng = np.random.default_rng(0)
    make = convnet_for(train.image_shape, train.num_classes, width=args.width)
    drawn = [
        train.subset(rng.permutation(len(train))[: args.batch_size]) for _ in range(args.draws)
    ]
    batches = [
        (jnp.asarray(coreset.preprocess(b.images)), jax.nn.one_hot(b.labels, train.num_classes))
        for b in drawn
    ]
    tested = jnp.asarray(apply_in_chunks(coreset.preprocess, test.images))
    truth = jnp.asarray(test.labels)

    exact, head_only = methods.rcig(), methods.frepo(outer_loss=platt_loss)

    @eqx.filter_jit
    def gradients(model, images, targets):
        found, control = (
            method.hypergradient(model, coreset, images, targets, key=jr.key(0))
            for method in (exact, head_only)
        )
        of_both = [(h.gradient.images.ravel(), h.gradient.labels.ravel()) for h in (found, control)]
        return *of_both, found.stats["accuracy"]

    for age in args.ages:
        found, tests = [], []
        for n in range(args.draws):
            model = pool_network(make, X_S, y_S, age, seed=50 + n)
            found.append([gradients(model, *batch) for batch in batches])
            tests.append([float(x) for x in accuracies(model, X_S, y_S, tested, truth)])
        print(f"networks after {age} pool steps")
        for i, name in enumerate(("images", "labels")):
            draws, controls = (
                np.array([[np.asarray(g[which][i], np.float64) for g in r] for r in found])
                for which in (0, 1)
            )
            values = components(draws)
            titles = ("network", "batch", "interaction")
            shown = (f"{title} {value:.2e}" for title, value in zip(titles, values, strict=True))
            left = left_by_control(draws, controls)
            print(f"  {name}: " + ", ".join(shown) + f"; a control variate leaves {left:.0%}")
        on_batches = np.mean([[float(g[2]) for g in row] for row in found])
        linear, head, own = np.mean(tests, axis=0)
        print(
            f"  accuracy: linearized {linear:.2%} ({on_batches:.2%} on the outer batches), "
            f"ridge head {head:.2%}, the network itself {own:.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
