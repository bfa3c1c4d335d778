"""An exported set trained on by this library, by PyTorch and by NumPy alone.

    python benchmarks/export.py
    python benchmarks/export.py --result runs/fashion_mnist-1ipc/distilled.safetensors

Distills (or loads) a set, evaluates it by the paper's protocol, exports it, and has the two scripts
in `examples/` train on the folder by what its card says. The last column is the difference of means
in standard errors.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.random as jr
import numpy as np

from _common import print_header
from rcig_eqx import convnet_for, data, distill, evaluate, export, load_result, platt_loss
from rcig_eqx.methods import frepo

EXAMPLES = Path(__file__).parent.parent / "examples"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", help="a distilled set; distilled anew if not given")
    parser.add_argument("--dataset", default="fashion_mnist_small")
    parser.add_argument("--directory")
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--distill-steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--networks", type=int, nargs=3, default=[5, 5, 5])
    args = parser.parse_args()
    test = data.load(args.dataset, "test", directory=args.directory)
    if args.result:
        result = load_result(args.result)
    else:
        train = data.load(args.dataset, "train", directory=args.directory)
        result = distill(
            train,
            images_per_class=args.images_per_class,
            key=jr.key(0),
            method=frepo(outer_loss=platt_loss),
            model=convnet_for(train.image_shape, train.num_classes, width=args.width),
            steps=args.distill_steps,
            progress=False,
        )
    print_header(f"{test!r}; {result.coreset.images.shape[0]} distilled images")
    print(f"{'':10}{'mean':>9}{'std':>8}{'networks':>10}{'seconds':>9}{'difference':>12}")
    began = time.perf_counter()
    own = evaluate(
        result.coreset,
        test,
        key=jr.key(1),
        model=convnet_for(test.image_shape, test.num_classes, width=args.width, softplus=None),
        num_networks=args.networks[0],
        progress=False,
    )
    report("rcig_eqx", own.accuracies, own.accuracies, began)
    with tempfile.TemporaryDirectory() as place:
        folder, images = Path(place) / "export", Path(place) / "test.npz"
        export(result, folder, evaluation=own)
        np.savez(images, images=test.images, labels=test.labels)
        for name, count in zip(("pytorch", "numpy"), args.networks[1:], strict=True):
            began = time.perf_counter()
            command = [sys.executable, EXAMPLES / f"train_with_{name}.py", folder, images]
            done = subprocess.run(
                [*map(str, command), str(count)], stdout=subprocess.PIPE, text=True, check=True
            )
            accuracies = np.array(re.findall(r"network \d+: ([\d.]+)", done.stdout), float)
            report(name, accuracies, own.accuracies, began)


def report(name: str, accuracies: np.ndarray, own: np.ndarray, began: float) -> None:
    mean, std = accuracies.mean(), accuracies.std(ddof=1)
    error = np.sqrt(std**2 / len(accuracies) + own.var(ddof=1) / len(own))
    print(
        f"{name:10}{mean:9.2%}{std:8.2%}{len(accuracies):10}{time.perf_counter() - began:9.0f}"
        f"{(mean - own.mean()) / error:+12.1f}   {', '.join(f'{x:.2%}' for x in accuracies)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
