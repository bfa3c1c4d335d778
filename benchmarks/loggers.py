"""What loggers cost: steps of runs with each logger and without, in turn.

    python benchmarks/loggers.py --out loggers.jsonl

A head-only step at 1 image per class. "In the call" is the processor's time that the logger itself
took of a step. Loggers that are not installed are left out; Weights & Biases writes offline.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from _common import append_lines, distill_head_only, print_header
from rcig_eqx import convnet_for, data, loggers


class Timed:
    """A callback, and the seconds of its calls but the first, which opens what it writes to."""

    def __init__(self, callback):
        self.callback, self.seconds = callback, []

    def __call__(self, progress):
        began = time.thread_time()
        self.callback(progress)
        self.seconds.append(time.thread_time() - began)


def callbacks(folder: Path) -> dict[str, list]:
    """Callbacks by what they are called, first none."""
    made = {"none": [], "jsonl": [loggers.jsonl(folder)], "csv": [loggers.csv(folder)]}
    if importlib.util.find_spec("tensorboardX"):
        made["tensorboard"] = [loggers.tensorboard(folder / "tensorboard")]
    if importlib.util.find_spec("wandb"):
        made["wandb"] = [loggers.wandb(mode="offline", dir=folder)]
    return {name: [Timed(callback) for callback in each] for name, each in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    asked = parser.parse_args()
    train = data.load("fashion_mnist_small", "train")
    model = convnet_for(train.image_shape, train.num_classes, width=asked.width)
    with tempfile.TemporaryDirectory() as folder:
        timed = callbacks(Path(folder))
        steps = {name: [] for name in timed}
        for _ in range(asked.repeats):
            for name, own in timed.items():
                result = distill_head_only(
                    train, model, asked.steps, images_per_class=1, callbacks=own
                )
                steps[name] += np.diff(result.history["seconds"].astype(np.float64)).tolist()
    print_header(f"Milliseconds of a step at width {asked.width}, {asked.steps} steps in turn")
    print(f"{'logger':<14}{'step':>9}{'in the call':>13}{'share':>9}")
    rows = []
    for name, own in timed.items():
        step = 1e3 * statistics.median(steps[name])
        # of every run, the first call opens and the last of its steps closes
        calls = [t for c in own for i, t in enumerate(c.seconds) if i % asked.steps]
        call = 1e3 * statistics.fmean(calls) if calls else 0.0
        rows.append({"logger": name, "width": asked.width, "steps": asked.steps})
        rows[-1] |= {"step_ms": round(step, 3), "call_ms": round(call, 4)}
        print(f"{name:<14}{step:>9.3f}{call:>13.4f}{call / step:>9.2%}")
    append_lines(asked.out, rows)


if __name__ == "__main__":
    main()
