"""Accuracy against wall time of any method: what each second of distilling buys.

    python benchmarks/worth.py run --method rcig --images-per-class 1 --out worth.jsonl
    python benchmarks/worth.py run --method frepo --images-per-class 1 --out worth.jsonl
    python benchmarks/worth.py draw worth.jsonl --figure worth.png

A run distils until the last of `--seconds` has passed, all else being the library's defaults, and
keeps what it has at each of them. Seconds are those of the whole `distill` call: preprocessing,
compilation and the search for learning rates included. Then, off the clock, fresh networks are
trained on each by the paper's protocol and tested on the whole test set. Every line appended to
`--out` is one distilled set's accuracies, the average's and the last iterate's.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.random as jr

from _common import fresh_accuracies, print_header
from rcig_eqx import (
    PoolSchedule,
    convnet_for,
    coreset_optimizer,
    data,
    distill,
    growing_average,
    methods,
    platt_loss,
)
from rcig_eqx.solvers import DualCG

METHODS = {
    "rcig": methods.rcig,
    "rcig_paper": methods.rcig_paper,
    "rig": methods.rig,
    "cig": methods.cig,
    "vig": methods.vig,
    "frepo": methods.frepo,
    "frepo_platt": lambda **options: methods.frepo(outer_loss=platt_loss, **options),
    "random": methods.random_subset,
    "default": lambda: None,
}


def run(args):
    """Distil, then evaluate what there was at each budget."""
    load = {"directory": args.directory}
    train = data.load(args.dataset, "train", **load)
    test = data.load(args.dataset, "test", **load)
    options = {} if args.rtol is None else {"solver": DualCG(rtol=args.rtol)}
    if args.l2_rate is not None:
        options["l2_rate"] = args.l2_rate
    pool = {name: getattr(args, name) for name in POOL if getattr(args, name) is not None}
    method = METHODS[args.method](**options)
    if args.head_first:
        method = methods.staged(METHODS["frepo_platt"](), method, args.head_first)
    settings = {
        "method": method,
        "model": convnet_for(train.image_shape, train.num_classes, width=args.width),
        "pool": PoolSchedule(**pool),
    }
    if args.rate is not None:
        settings["optimizer"] = coreset_optimizer(args.rate)
    if args.sharpness is not None:
        settings["average"] = growing_average(args.sharpness)
    print_header(f"{args}")
    began = time.perf_counter()
    budgets, kept = iter([*sorted(args.seconds), None]), []
    due = next(budgets)

    def keep(progress):
        nonlocal due
        jax.block_until_ready(progress.state.coreset)
        seconds = time.perf_counter() - began
        while due is not None and seconds >= due:
            kept.append((due, seconds, progress.step, progress.result()))
            due = next(budgets)
        return due is None

    result = distill(
        train,
        images_per_class=args.images_per_class,
        key=jr.key(args.seed),
        steps=1 if args.method == "random" else 10**7,
        batch_size=args.batch_size,
        fold=not args.no_fold,
        callbacks=[keep],
        progress=False,
        **settings,
    )
    kept = kept or [(0, 0.0, 0, result)]

    def measure(coreset):
        report = fresh_accuracies(
            coreset, test, width=args.width, networks=args.networks, seed=args.seed + 1000
        )
        return report.accuracies.tolist()

    for budget, seconds, step, at in kept:
        line = vars(args) | {"budget": budget, "taken": seconds, "steps": step}
        line |= {"average": measure(at.coreset)}
        line |= {} if args.skip_last else {"last": measure(at.last)}
        del line["command"], line["out"], line["directory"]
        with open(args.out, "a") as file:
            file.write(json.dumps(line) + "\n")
        shown = {k: sum(line[k]) / len(line[k]) for k in ("average", "last") if k in line}
        print(f"{budget:>7} s {step:>7} steps  {shown}", flush=True)


def draw(args):
    """Mean accuracy against budget: a panel a data set and size, a line a method.

    Bands are the standard error over seeds and networks.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    found = {}
    for path in args.lines:
        for line in map(json.loads, pathlib.Path(path).read_text().splitlines()):
            panel = f"{line['dataset']}, {line['images_per_class']} a class, width {line['width']}"
            label = line["label"] or line["method"]
            budgets = found.setdefault(panel, {}).setdefault(label, {})
            budgets.setdefault(line["budget"], []).extend(line.get(args.which, []))
    figure, axes = plt.subplots(1, len(found), figsize=(5.5 * len(found), 4), squeeze=False)
    for axis, (panel, labels) in zip(axes[0], sorted(found.items()), strict=True):
        for label, budgets in sorted(labels.items()):
            at = sorted(budget for budget, values in budgets.items() if values)
            mean = np.array([np.mean(budgets[b]) for b in at]) * 100
            error = np.array([np.std(budgets[b]) / len(budgets[b]) ** 0.5 for b in at]) * 100
            axis.plot(at, mean, "o-", markersize=3, label=label)
            axis.fill_between(at, mean - error, mean + error, alpha=0.2)
        axis.set(xscale="log", xlabel="seconds of distilling", ylabel="test accuracy, %")
        ticks = sorted({budget for budgets in labels.values() for budget in budgets})
        axis.set_xticks(ticks, [f"{seconds:,}" for seconds in ticks])
        axis.set_xticks([], minor=True)
        axis.set_title(panel)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(args.figure, dpi=120)


POOL = {"size": int, "max_steps": int, "min_visit": int, "max_visit": int, "learning_rate": float}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--method", choices=METHODS, default="rcig")
    one.add_argument("--dataset", default="fashion_mnist")
    one.add_argument("--directory")
    one.add_argument("--images-per-class", type=int, default=1)
    one.add_argument("--width", type=int, default=32)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--seconds", type=int, nargs="+", default=[60, 120, 300, 600, 1200, 2400])
    one.add_argument("--networks", type=int, default=5)
    one.add_argument("--no-fold", action="store_true", help="leave the temperature out of labels")
    one.add_argument("--skip-last", action="store_true")
    one.add_argument("--label", help="what to call it in the figure, if not by its method")
    one.add_argument("--out", default="worth.jsonl")
    one.add_argument("--head-first", type=int, help="steps by the head-only gradient")
    one.add_argument("--batch-size", type=int)
    one.add_argument("--rate", type=float, help="of images and labels")
    one.add_argument("--sharpness", type=float, help="of the average")
    one.add_argument("--rtol", type=float, help="conjugate gradients to this residual")
    one.add_argument("--l2-rate", type=float)
    for name, kind in POOL.items():
        one.add_argument(f"--{name.replace('_', '-')}", type=kind, help="of the pool")
    many = commands.add_parser("draw")
    many.add_argument("lines", nargs="+")
    many.add_argument("--figure", required=True)
    many.add_argument("--which", choices=("average", "last"), default="average")
    args = parser.parse_args()
    run(args) if args.command == "run" else draw(args)


if __name__ == "__main__":
    main()
