"""Runs killed at random moments, against one that nothing touches: do they end in the same bytes?

    python benchmarks/kills.py --kills 20

Each run distills the embedded Fashion-MNIST images in a process of its own and writes a checkpoint
after every step. It is killed with SIGKILL after a random time, and the next process goes on from
what it finds; those that were killed while a checkpoint was being written have left a part of one.
When all kills are done, a last process finishes the run. Compared are the distilled sets, the
whole history but the clock's, and the recipe.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.random as jr
import numpy as np

from _common import print_header
from rcig_eqx import Checkpoints, PoolSchedule, Recipe, convnet_for, data, distill, load_result
from rcig_eqx.run._progress import Progress


def child(args: argparse.Namespace) -> None:
    """One life of the run."""
    train = data.load("fashion_mnist_small", "train")

    def tell(progress: Progress) -> None:
        print(progress.step, flush=True)

    result = distill(
        train,
        images_per_class=1,
        key=jr.key(0),
        model=convnet_for(train.image_shape, train.num_classes, width=args.width),
        recipe=Recipe(pool=PoolSchedule(size=4)),
        steps=args.steps,
        checkpoint_dir=Checkpoints(args.folder / "checkpoints", every=0.0, resume=True),
        callbacks=[tell],
        progress=False,
    )
    result.save(args.folder / "result.safetensors")


def start(folder: Path, args: argparse.Namespace) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    options = ["--steps", str(args.steps), "--width", str(args.width)]
    command = [sys.executable, __file__, "--child", "--folder", str(folder), *options]
    # Compiled once for all lives: it takes most of one.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(command, env=os.environ | cache, stdout=subprocess.PIPE, text=True)


def same(a: Path, b: Path) -> bool:
    """Whether two results are the same bytes, the clock's apart."""
    a, b = load_result(a), load_result(b)
    leaves = [
        [np.asarray(x).tobytes() for x in jax.tree.leaves((r.coreset, r.last, r.baseline))]
        + [r.history[name].tobytes() for name in sorted(r.history) if name != "seconds"]
        for r in (a, b)
    ]
    return leaves[0] == leaves[1] and a.recipe == b.recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    print_header(f"{args.kills} kills of a run of {args.steps} steps, width {args.width}")
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        process = start(whole, args)
        began, ready = time.perf_counter(), 0.0
        for line in process.stdout:
            if int(line) == 1:
                ready = time.perf_counter()
        assert process.wait() == 0
        stepping = time.perf_counter() - ready
        print(f"undisturbed: {time.perf_counter() - began:.1f} s, {stepping:.1f} of them stepping")

        # All the kills fall within the steps there are: each life is allowed a share of them.
        share = 1.6 * stepping / args.kills
        torn = 0
        for number in range(1, args.kills + 1):
            process = start(killed, args)
            first = process.stdout.readline()  # the first step of this life, or none are left
            if not first:
                print(f"kill {number}: the run was done before", flush=True)
                break
            time.sleep(rng.uniform(0, share))
            process.send_signal(signal.SIGKILL)
            last = (first + process.stdout.read()).split()[-1]
            process.wait()
            parts = list((killed / "checkpoints").glob(".*.part"))
            torn += bool(parts)
            torn_text = "  while a checkpoint was written" if parts else ""
            print(f"kill {number}: after step {last}{torn_text}", flush=True)
        process = start(killed, args)
        process.communicate()
        assert process.returncode == 0
        equal = same(whole / "result.safetensors", killed / "result.safetensors")
        print(f"survived {number} of {args.kills} kills, {torn} while a checkpoint was written")
        print(f"the same bytes: {equal}")
        sys.exit(not equal)


if __name__ == "__main__":
    main()
