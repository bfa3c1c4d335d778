"""Accuracy along a run of one method: average and last iterate, with wall time.

    python benchmarks/accuracy.py --images-per-class 1 --at 50 100 200 400
    python benchmarks/accuracy.py --images-per-class 10 --at 50

Every row is the mean and spread over fresh networks trained on the distilled set by the paper's
protocol (no augmentation) and tested on the whole test set. The random real images of the same
budget come last. Seconds are those of distilling, compilation included.
"""

import argparse

import jax.random as jr

from _common import fresh_accuracies, print_header
from rcig_eqx import convnet_for, data, distill, platt_loss
from rcig_eqx.methods import frepo, rcig


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--directory")
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--at", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--method", choices=("rcig", "head"), default="rcig")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-baseline", action="store_true")
    args = parser.parse_args()
    train = data.load(args.dataset, "train", directory=args.directory)
    test = data.load(args.dataset, "test", directory=args.directory)
    print_header(
        f"{args.dataset}, {args.images_per_class} images per class, width {args.width}, "
        f"{args.method}, seed {args.seed}"
    )
    reached = {}

    def keep(progress):
        if progress.step in args.at:
            reached[progress.step] = progress.result()

    result = distill(
        train,
        images_per_class=args.images_per_class,
        key=jr.key(args.seed),
        method=rcig() if args.method == "rcig" else frepo(outer_loss=platt_loss),
        model=convnet_for(train.image_shape, train.num_classes, width=args.width),
        steps=max(args.at),
        callbacks=[keep],
    )

    def measure(coreset):
        report = fresh_accuracies(
            coreset, test, width=args.width, networks=args.networks, seed=args.seed + 1
        )
        return f"{report.mean:8.2%} ± {report.std:.2%}"

    print(f"{'steps':>6}{'seconds':>9}{'average':>18}{'last':>18}")
    for step in args.at:
        seconds = result.history["seconds"][step - 1]
        row = f"{measure(reached[step].coreset):>18}{measure(reached[step].last):>18}"
        print(f"{step:>6}{seconds:9.0f}{row}", flush=True)
    if not args.skip_baseline:
        print(f"random real images {measure(result.baseline)}")


if __name__ == "__main__":
    main()
