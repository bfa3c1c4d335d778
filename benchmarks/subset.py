"""Memory, time and accuracy against the size of the backward pass (the paper's Figure 5).

    python benchmarks/subset.py --images-per-class 100
    python benchmarks/subset.py --images-per-class 100 --accuracy-steps 100 --skip-cost

One hypergradient of each method at 1,000 distilled Fashion-MNIST images, its last backward pass
through n_subset of them, in chunks of `--chunk`. `held` is the library as it is at so many images:
forward passes and products keep their activations, and only the last backward pass of the exact and
the paper's method takes 16 images at a time. With `--accuracy-steps`, the accuracy after so many
head-only steps with each n_subset.
"""

import argparse
from unittest import mock

import jax.random as jr

from _common import (
    append_lines,
    compile_and_time,
    fresh_accuracies,
    hypergradient_of,
    print_header,
    setting,
)
from rcig_eqx import PoolSchedule, Recipe, convnet_for, data, distill, platt_loss
from rcig_eqx.methods import frepo, rcig, rcig_paper
from rcig_eqx.solvers import Adam, ConjugateGradient


def methods_of(subset, steps):
    """Each method with a number of inner steps, the exact one with as many products a solve."""
    adam = {"inner": Adam(1e-3, steps), "solver": Adam(1e-2, steps)}
    return {
        "head only": frepo(outer_loss=platt_loss, subset=subset),
        f"exact, CG of {steps}": rcig(solver=ConjugateGradient(1e-12, steps), subset=subset),
        f"paper's Adam {steps}/{steps}": rcig_paper(**adam, subset=subset),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--subsets", type=int, nargs="+", default=[50, 200, 500, 1000])
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--chunk", type=int, default=250, help="images of a chunk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--accuracy-steps", type=int, default=0)
    parser.add_argument("--skip-cost", action="store_true", help="accuracies alone")
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    print_header(f"{args}")
    if not args.skip_cost:
        costs(args)
    if args.accuracy_steps:
        accuracies(args)


def costs(args):
    """Seconds and temporaries of one hypergradient, by method and n_subset."""
    problem = setting(args.images_per_class, args.batch_size, width=args.width)
    n = len(problem[1].labels)
    print(f"{'method':<28}{'n_subset':>9}{'seconds':>9}{'quartiles':>16}{'temp MB':>9}")

    def rows(subsets, steps, held, note=""):
        """A row a method and n_subset; those of as many steps take turns."""
        cases = {
            f"{name:<28}{subset or n:>9}": (hypergradient_of(method), problem)
            for subset in subsets
            for name, method in methods_of(subset, steps).items()
        }
        with mock.patch("rcig_eqx._subsample.IMAGES_HELD", held):
            for name, timing in compile_and_time(cases, repeats=args.repeats).items():
                print(f"{name}{timing}{note}", flush=True)
                method, count = name[:28].strip(), int(name[28:])
                case = {"method": method, "n_subset": count, "chunk": held}
                append_lines(args.out, [case | timing.row()])

    for steps in args.steps:
        rows(args.subsets, steps, args.chunk)
    rows([None], args.steps[-1], n, "  held")


def accuracies(args):
    """Head-only distillation with each n_subset, from the same start."""
    train, test = (data.load("fashion_mnist", split) for split in ("train", "test"))
    for subset in args.subsets:
        result = distill(
            train,
            images_per_class=args.images_per_class,
            key=jr.key(0),
            method=frepo(outer_loss=platt_loss, subset=subset),
            model=convnet_for(train.image_shape, train.num_classes, width=args.width),
            recipe=Recipe(pool=PoolSchedule(max_visit=1)),
            steps=args.accuracy_steps,
            progress=False,
        )
        report = fresh_accuracies(
            result.coreset, test, width=args.width, networks=args.networks, seed=1
        )
        seconds = result.history["seconds"]
        print(
            f"n_subset {subset}: {report.mean:.2%} ± {report.std:.2%} after {args.accuracy_steps} "
            f"steps, {seconds[-1]:.0f} s",
            flush=True,
        )
        case = {"n_subset": subset, "steps": args.accuracy_steps}
        append_lines(args.out, [case | {"accuracies": report.accuracies.tolist()}])


if __name__ == "__main__":
    main()
