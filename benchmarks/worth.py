"""Accuracy against wall time of any method: what each second of distilling buys.

    python benchmarks/worth.py run --method rcig --images-per-class 1 --out worth.jsonl
    python benchmarks/worth.py run --method frepo --images-per-class 1 --out worth.jsonl
    python benchmarks/worth.py table worth.jsonl
    python benchmarks/worth.py draw worth.jsonl --figure worth.png

A run distills until the last of `--seconds` has passed, all else being the library's defaults, and
keeps what it has at each of them. `default` is the method of a long run, 1,000 head-only steps
first: one that `distill` is asked to end earlier than after 2,000 turns exact halfway. Seconds are
those of the whole `distill` call: preprocessing, compilation and the search for learning rates
included. Then, off the clock, fresh networks are trained on each by the paper's protocol and tested
on the whole test set. Every line appended to `--out` is one distilled set's accuracies, the
average's and the last iterate's.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.random as jr
import numpy as np

from _common import append_lines, fresh_accuracies, print_header
from rcig_eqx import (
    PoolSchedule,
    Recipe,
    convnet_for,
    coreset_optimizer,
    data,
    distill,
    methods,
)
from rcig_eqx.solvers import Adam

LONG = 10**7  # steps: more than any budget has time for
METHODS = {"default": functools.partial(methods.default_method, LONG), **methods.METHODS}


def run(args):
    """Distill, then evaluate what there was at each budget."""
    load = {"directory": args.directory}
    train = data.load(args.dataset, "train", **load)
    test = data.load(args.dataset, "test", **load)
    pool = {name: getattr(args, name) for name in POOL if getattr(args, name) is not None}
    method = METHODS[args.method](**({"inner": Adam(args.inner_rate)} if args.inner_rate else {}))
    if args.head_first:
        method = methods.staged(METHODS["frepo_platt"](), method, args.head_first)
    settings = {
        "method": method,
        "model": convnet_for(train.image_shape, train.num_classes, width=args.width),
        "recipe": Recipe(
            optimizer=coreset_optimizer(args.rate),
            pool=PoolSchedule(**pool),
            fold=False if args.no_fold else None,
        ),
    }
    print_header(f"{args}")
    began = time.perf_counter()
    budgets, kept = iter([*sorted(args.seconds), None]), []
    due = next(budgets)

    def keep(progress):
        nonlocal due
        jax.block_until_ready(progress.state.psi)
        seconds = time.perf_counter() - began
        while due is not None and seconds >= due:
            kept.append((due, seconds, progress.step, progress.result()))
            due = next(budgets)
        return due is None

    result = distill(
        train,
        images_per_class=args.images_per_class,
        key=jr.key(args.seed),
        steps=1 if args.method == "random" else LONG,
        batch_size=args.batch_size,
        callbacks=[keep],
        progress=False,
        **settings,
    )
    kept = kept or [(0, 0.0, 0, result)]
    print(f"method at the end: {result.recipe['method']}", flush=True)

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
        append_lines(args.out, [line])
        shown = {k: sum(line[k]) / len(line[k]) for k in ("average", "last") if k in line}
        print(f"{budget:>7} s {step:>7} steps  {shown}", flush=True)


def curves(paths, which):
    """Accuracies by panel (a data set and size), by method and rate, by budget, and by seed."""
    found = {}
    for path in paths:
        for line in map(json.loads, pathlib.Path(path).read_text().splitlines()):
            panel = f"{line['dataset']}, {line['images_per_class']} a class, width {line['width']}"
            label = line["method"] + (f", rate {line['rate']} held" if line.get("rate") else "")
            label += f" after {line['head_first']:,} head-only" if line.get("head_first") else ""
            label += f", inner rate {line['inner_rate']}" if line.get("inner_rate") else ""
            budgets = found.setdefault(panel, {}).setdefault(label, {})
            if which in line:
                budgets.setdefault(line["budget"], {})[line["seed"]] = line[which]
    for labels in found.values():
        at = {budget for budgets in labels.values() for budget in budgets if budget}
        for label, budgets in labels.items():
            if 0 in budgets:  # real images take no time: as good at every budget
                labels[label] = dict.fromkeys(at or {0}, budgets[0])
    return found


def mean_and_error(accuracies):
    """Mean in per cent and its standard error: over seeds, or the networks of a single one.

    A single network has none, which is NaN.
    """
    sets = list(accuracies.values())
    each = [np.mean(a) for a in sets] if len(sets) > 1 else sets[0]
    error = np.std(each, ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    return 100 * np.mean(each), 100 * error


def table(args):
    """The same in Markdown: a row a method, the average's and the last iterate's.

    A cell of fewer seeds than the row's others has a †: it may not be compared with them.
    """

    def text(accuracies, seeds):
        mean, error = mean_and_error(accuracies)
        spread = "" if np.isnan(error) else f" ± {error:.1f}"
        return f"{mean:.1f}{spread}{' †' * (len(accuracies) < seeds)}"

    both = {which: curves(args.lines, which) for which in ("average", "last")}
    for panel, labels in both["average"].items():
        at = sorted({budget for budgets in labels.values() for budget in budgets})
        print(f"{panel}\n\n| seconds | | {' | '.join(f'{b:,}' for b in at)} |")
        print("|---" * (len(at) + 2) + "|")
        for label in labels:
            for which, found in both.items():
                cells = found[panel][label]
                seeds = max(map(len, cells.values()), default=0)
                shown = [text(cells[b], seeds) if b in cells else "" for b in at]
                if cells:
                    print(f"| {label} | {which} | {' | '.join(shown)} |")
        print()


def draw(args):
    """Mean accuracy against budget: a row a data set and size, a line a method and rate.

    The second panel of a row is the first one's upper end. Bands are standard errors of the mean,
    which is where all of its seeds are; thin lines are these, where there are several. What has one
    budget alone makes no line.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {
        panel: labels
        for panel, labels in curves(args.lines, args.which).items()
        if len({budget for budgets in labels.values() for budget in budgets}) > 1
    }
    size = (11, 3.5 * len(found))
    figure, axes = plt.subplots(len(found), 2, figsize=size, squeeze=False, layout="constrained")
    known = {}  # lines are of the same color in all panels
    for row, (panel, labels) in zip(axes, sorted(found.items()), strict=True):
        best = 0.0
        for label, budgets in labels.items():
            seeds = {seed for there in budgets.values() for seed in there}
            at = sorted(b for b in budgets if len(budgets[b]) == len(seeds))
            mean, error = np.array([mean_and_error(budgets[b]) for b in at]).T
            best = max(best, *mean)
            number = list(known).index(label) if label in known else len(known)
            color, dashes = f"C{number % 10}", "o-" if number < 10 else "o--"
            for axis in row:
                (known[label],) = axis.plot(at, mean, dashes, markersize=3, color=color)
                low, high = mean - error, mean + error
                axis.fill_between(at, low, high, alpha=0.2, color=color, linewidth=0)
                for seed in seeds if len(seeds) > 1 else ():
                    own = sorted(b for b in budgets if seed in budgets[b])
                    of_seed = [100 * np.mean(budgets[b][seed]) for b in own]
                    axis.plot(own, of_seed, ".-", markersize=2, linewidth=0.6, color=color)
        ticks = sorted({budget for budgets in labels.values() for budget in budgets})
        for axis in row:
            axis.set(xscale="log", xlabel="seconds of distilling", ylabel="test accuracy, %")
            axis.set_xticks(ticks, [f"{seconds:,}" for seconds in ticks])
            axis.set_xticks([], minor=True)
            axis.set_title(panel)
            axis.grid(alpha=0.3)
        row[1].set_ylim(best - UPPER_END, best + 1)
    figure.legend(known.values(), known, loc="outside lower center", ncols=5)
    figure.savefig(args.figure, dpi=120)


POOL = ("max_steps", "max_visit")
UPPER_END = 5  # points of accuracy


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
    one.add_argument("--out", default="worth.jsonl")
    one.add_argument("--head-first", type=int, help="steps by the head-only gradient")
    one.add_argument("--batch-size", type=int)
    one.add_argument("--rate", type=float, help="of images and labels, held")
    one.add_argument("--inner-rate", type=float, help="of Adam's inner steps, else searched for")
    for name in POOL:
        one.add_argument(f"--{name.replace('_', '-')}", type=int, help="of the pool")
    rows, many = commands.add_parser("table"), commands.add_parser("draw")
    for command in (rows, many):
        command.add_argument("lines", nargs="+")
    many.add_argument("--figure", required=True)
    many.add_argument("--which", choices=("average", "last"), default="average")
    args = parser.parse_args()
    {"run": run, "table": table, "draw": draw}[args.command](args)


if __name__ == "__main__":
    main()
