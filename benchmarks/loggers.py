"""What loggers cost: steps of runs with each logger and without, in turn.

    python benchmarks/loggers.py --out loggers.jsonl

A head-only step at 1 image per class. "Processor" is the time that all threads of the process
computed in a step, "in the call" what the logger's call did; neither counts what else the machine
does meanwhile. Loggers that are not installed are left out; Weights & Biases writes offline.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from _common import append_lines, distill_head_only, print_header
from rcig_eqx import convnet_for, data
from rcig_eqx.run import loggers


class Timed:
    """A callback or none, the seconds of its calls, and the process's at the end of each."""

    def __init__(self, *callbacks):
        self.callbacks, self.calls, self.process = callbacks, [], []

    def __call__(self, progress):
        began = time.thread_time()
        for callback in self.callbacks:
            callback(progress)
        self.calls.append(time.thread_time() - began)
        self.process.append(time.process_time())


def callbacks(folder: Path) -> dict[str, Timed]:
    """Loggers by what they are called, first none."""
    made = {"none": [], "jsonl": [loggers.jsonl(folder)], "csv": [loggers.csv(folder)]}
    if importlib.util.find_spec("tensorboardX"):
        made["tensorboard"] = [loggers.tensorboard(folder / "tensorboard")]
    if importlib.util.find_spec("wandb"):
        made["wandb"] = [loggers.wandb(mode="offline", dir=folder)]
    return {name: Timed(*each) for name, each in made.items()}


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
        elapsed = {name: [] for name in timed}
        for _ in range(asked.repeats):
            for name, own in timed.items():
                result = distill_head_only(
                    train, model, asked.steps, images_per_class=1, callbacks=[own]
                )
                elapsed[name] += np.diff(result.history["seconds"].astype(np.float64)).tolist()
    print_header(f"Milliseconds of a step at width {asked.width}, runs of {asked.steps} in turn")
    print(f"{'logger':<14}{'elapsed':>9}{'processor':>11}{'in the call':>13}{'share':>9}")
    rows = []
    for name, own in timed.items():
        runs = np.reshape(own.process, (asked.repeats, asked.steps))
        calls = np.reshape(own.calls, (asked.repeats, asked.steps))[:, 1:]  # the first opens
        step, call = 1e3 * statistics.median(elapsed[name]), 1e3 * calls.mean()
        spent = 1e3 * float(np.median(np.diff(runs)))
        rows.append({"logger": name, "width": asked.width, "steps": asked.steps})
        rows[-1] |= {"elapsed_ms": round(step, 3), "processor_ms": round(spent, 3)}
        rows[-1] |= {"call_ms": round(call, 4)}
        print(f"{name:<14}{step:>9.2f}{spent:>11.2f}{call:>13.4f}{call / spent:>9.2%}")
    append_lines(asked.out, rows)


if __name__ == "__main__":
    main()
