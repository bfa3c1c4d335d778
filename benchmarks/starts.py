r"""Accuracy by where a distilled set starts, and by augmentation while distilling.

    python benchmarks/starts.py --datasets fashion_mnist mnist cifar10 --each 1 10 --steps 500 \
        --starts real noise kmeans herding herding_features mean mean_augmented --out starts.jsonl
    python benchmarks/starts.py --datasets cifar10 --images 2000 --each 10 --steps 500 \
        --augments none each alike --tested none paper --out augmentation.jsonl

Distills every case for `--steps`, or until `--seconds` have passed since its first step, and trains
fresh networks on the result. `--images` takes as many training images, the same number of
each class. `--augments` is what changes the outer batch and the set: nothing, each image in its own
way, or all of a step alike (siamese); `--tested` is what changes the images that fresh networks
train on. A case that `--out` has already is passed over.
"""

import argparse
import itertools
import json
import pathlib
import time

import jax
import jax.random as jr
import numpy as np

from _common import append_lines, print_header
from rcig_eqx import Recipe, convnet_for, data, distill, evaluate
from rcig_eqx.evaluation import Augment, paper_strategy
from rcig_eqx.initializers import INITIALIZERS, herding, mean
from rcig_eqx.methods import METHODS

LONG = 10**7  # steps: more than any time is enough for
AUGMENTS = {"none": None, "each": False, "alike": True}  # whether it is siamese


def start(name, model, strategy):
    """An initializer by its name here: those of the library, and two with options."""
    if name == "herding_features":
        return herding(model)
    if name == "mean_augmented":
        return mean(augment=Augment(strategy, "all"))
    return INITIALIZERS[name]()


def training_images(args, name):
    """The training images, or so many of them, as many of each class."""
    train = data.load(name, "train", directory=args.directory)
    if args.images is None:
        return train
    each = args.images // train.num_classes
    return train.subset(train.per_class(each, np.random.default_rng(0)))


def measure(args, case):
    """The lines of one case: a run, and fresh networks for each of `--tested`."""
    train = training_images(args, case["dataset"])
    test = data.load(case["dataset"], "test", directory=args.directory)
    model = convnet_for(train.image_shape, train.num_classes, width=args.width)
    strategy = args.strategy or paper_strategy(train.image_shape[2])
    siamese = AUGMENTS[case["augment"]]
    augment = None if siamese is None else Augment(strategy, siamese=siamese)
    began, first = time.perf_counter(), None

    def late(progress):
        nonlocal first
        jax.block_until_ready(progress.state.psi)
        first = first or time.perf_counter()
        return args.seconds is not None and time.perf_counter() - first >= args.seconds

    result = distill(
        train,
        images_per_class=case["each"],
        key=jr.key(case["seed"]),
        method=METHODS[args.method](),
        model=model,
        steps=args.steps or LONG,
        initialization=start(case["start"], model, strategy),
        recipe=Recipe(augment=augment),
        callbacks=[late],
        progress=False,
    )
    seconds = time.perf_counter() - began
    for tested in args.tested:
        report = evaluate(
            result,
            test,
            key=jr.key(case["seed"] + 1000),
            baseline=None if args.baseline else False,
            num_networks=args.networks,
            augment=tested == "paper",
            progress=False,
        )
        line = case | {"tested": tested, "strategy": strategy, "taken": round(seconds, 1)}
        line |= {"steps_done": result.recipe["steps_done"], "training_images": len(train)}
        line |= {"accuracies": report.accuracies.tolist(), "unconverged": report.unconverged}
        if report.baseline is not None:
            line["random_real"] = report.baseline.accuracies.tolist()
        yield line


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=["fashion_mnist"])
    parser.add_argument("--directory", help="looked in first, as by `data.load`")
    parser.add_argument("--images", type=int, help="training images, as many of each class")
    parser.add_argument("--each", type=int, nargs="+", default=[1], help="images per class")
    parser.add_argument("--starts", nargs="+", default=["real"])
    parser.add_argument("--augments", nargs="+", default=["none"], choices=AUGMENTS)
    parser.add_argument("--strategy", help="of the augmentation; the paper's if not given")
    parser.add_argument("--tested", nargs="+", default=["none"], choices=["none", "paper"])
    parser.add_argument("--method", default="frepo_platt", choices=METHODS)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, help="of each run; as the time allows if not given")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--networks", type=int, default=2, help="fresh ones for each set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs")
    parser.add_argument("--baseline", action="store_true", help="test random real images too")
    parser.add_argument("--out", help="file of JSON lines that the results are added to")
    args = parser.parse_args()
    if args.steps is None and args.seconds is None:
        parser.error("pass --steps or --seconds")
    print_header(f"{vars(args)}")
    same = ("method", "width", "images", "steps", "seconds", "networks")
    lines = pathlib.Path(args.out).read_text().splitlines() if _is_file(args.out) else []
    done = [json.loads(line) for line in lines]
    order = (args.seeds, args.datasets, args.each, args.starts, args.augments)
    for values in itertools.product(*order):
        names = ("seed", "dataset", "each", "start", "augment")
        case = dict(zip(names, values, strict=True)) | {k: getattr(args, k) for k in same}
        if any(case.items() <= line.items() for line in done):
            continue
        measured = list(measure(args, case))
        append_lines(args.out, measured)
        for line in measured:
            print(line, flush=True)


def _is_file(path):
    return path is not None and pathlib.Path(path).is_file()


if __name__ == "__main__":
    main()
