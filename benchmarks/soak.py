"""A long run at small width: do memory and the time of a step stay flat, is nothing retraced?

    python benchmarks/soak.py --figure soak.png

Compares the resident size and the time of a step after `--settle` steps with those at the end,
medians over as many steps. Times are the processor's, which other work beside it changes little.
Checkpoints are written on the way.
"""

import argparse
import os
import tempfile
import time

import jax
import jax.random as jr
import numpy as np

from _common import print_header
from rcig_eqx import Checkpoints, convnet_for, data, distill
from rcig_eqx.methods import frepo, rcig, staged
from rcig_eqx.models import ConvNet

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """Megabytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--settle", type=int, default=200)
    parser.add_argument("--sample", type=int, default=50)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--figure")
    args = parser.parse_args()
    print_header(f"{args.steps} steps at width {args.width}")
    train = data.load("fashion_mnist_small", "train")
    make = convnet_for(train.image_shape, train.num_classes, width=args.width)
    traces, ends, sizes = [], [], []

    def counted(key: jax.Array) -> ConvNet:
        traces.append(len(ends))
        return make(key)

    def look(progress) -> None:
        jax.block_until_ready(progress.state.psi)
        ends.append(time.process_time())
        if progress.step % args.sample == 0:
            sizes.append((progress.step, resident()))

    with tempfile.TemporaryDirectory() as folder:
        result = distill(
            train,
            images_per_class=1,
            key=jr.key(0),
            model=counted,
            method=staged(frepo(), rcig(), args.settle // 2),  # both parts have run by then
            steps=args.steps,
            checkpoint_dir=Checkpoints(folder, every=10.0),
            callbacks=[look],
            progress=False,
        )
    took = np.diff(ends)
    at, size = map(np.array, zip(*sizes, strict=True))
    early, late = size[at == args.settle][0], size[-1]
    parts = slice(args.settle, 2 * args.settle), slice(-args.settle, None)
    first, last = (float(np.median(took[part])) * 1e3 for part in parts)
    products = result.history["iterations"] + result.history["inner_iterations"]
    solves = [float(products[part].mean()) for part in parts]
    print(f"resident after step {args.settle}: {early:.1f} MB, after the last: {late:.1f} MB")
    print(
        f"change: {late / early - 1:+.2%}; largest in between {size[at >= args.settle].max():.1f}"
    )
    print(
        f"a step: {first:.1f} CPU ms in the {args.settle} after, {last:.1f} ms in the last as many"
    )
    print(f"products with J Jᵀ a step: {solves[0]:.1f} and {solves[1]:.1f}")
    print(f"network traced after the first step: {sum(number > 0 for number in traces)} times")
    if args.figure:
        draw(at, size, took, args)


def draw(at, size, took, args) -> None:
    """Both curves, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (memory, speed) = plt.subplots(2, 1, figsize=(7, 5), sharex=True)
    memory.plot(at, size, "o-", markersize=3)
    memory.set(ylabel="resident, MB", ylim=(0, None))
    blocks = took[: len(took) // args.sample * args.sample].reshape(-1, args.sample)
    speed.plot(args.sample * np.arange(1, len(blocks) + 1), np.median(blocks, 1) * 1e3)
    speed.set(ylabel="median step, CPU ms", xlabel="step", ylim=(0, None))
    for axis in (memory, speed):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.figure, dpi=120)


if __name__ == "__main__":
    main()
