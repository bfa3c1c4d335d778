"""`estimate_memory` against what a step really takes.

    python benchmarks/memory.py

For each setting, in a process of its own: the estimate, made before any state exists, and the
growth of the process's resident size from before the state exists to the peak of a few steps. The
peak is the kernel's count, set back after compilation, so that the compiler's own memory is left
out. What is freed goes back to the system at once: otherwise what the compiler left would be used
again, uncounted. Linux with glibc only.
"""

import argparse
import ctypes
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from _common import append_lines, print_header
from rcig_eqx import (
    PoolSchedule,
    Recipe,
    convnet_for,
    coreset_optimizer,
    data,
    estimate_memory,
    growing_average,
    init,
)
from rcig_eqx.initializers import real_coreset
from rcig_eqx.methods import frepo, rcig, rcig_paper
from rcig_eqx.run._step import compiled_step
from rcig_eqx.solvers import Adam

METHODS = {
    "head only": frepo,
    "exact": rcig,
    "exact, subset of 50": lambda: rcig(subset=50),
    "paper's 20/20": lambda: rcig_paper(inner=Adam(1e-3), solver=Adam(1e-2)),
}
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# Method, images a class, width, batch, pool.
SETTINGS = [
    ("head only", 10, 32, 64, 30),
    ("head only", 10, 64, 1024, 10),
    ("exact", 1, 64, 256, 10),
    ("exact", 1, 128, 64, 10),
    ("exact", 10, 32, 256, 10),
    ("exact", 10, 64, 64, 10),
    ("exact, subset of 50", 10, 64, 64, 10),
    ("paper's 20/20", 10, 32, 64, 10),
]


def status(field: str) -> float:
    """A line of this process's status, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1e3


def one(name: str, per_class: int, width: int, batch_size: int, pool: int, out: str | None) -> None:
    """Print the estimate and the measurement of one setting."""
    train = data.load("fashion_mnist_small", "train")
    preprocess = data.default_preprocess(train.images)
    coreset = real_coreset(train, per_class, preprocess, key=jr.key(0))
    recipe = Recipe(
        METHODS[name](),
        convnet_for(train.image_shape, train.num_classes, width=width),
        coreset_optimizer(),
        PoolSchedule(size=pool),
        growing_average(),
    )
    estimate = estimate_memory(recipe, coreset, batch_size)
    make = eqx.filter_jit(lambda c: init(c, recipe, key=jr.key(1))).lower(coreset).compile()
    images, labels = preprocess(train.images[:batch_size]), train.labels[:batch_size]
    batch = (images, jnp.asarray(labels, jnp.int32))
    compiled_step().lower(batch, make(coreset)).compile()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling left goes back to the system
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # sets the peak back
    state = make(coreset)
    for _ in range(3):
        state, _ = compiled_step()(batch, state)
    jax.block_until_ready(state.psi)
    measured = status("VmHWM") - before + estimate.batch / 1e6  # which is there already
    expected = estimate.total / 1e6
    print(
        f"{name:<22}{per_class:>5}{width:>7}{batch_size:>7}{pool:>6}{expected:>10.0f}"
        f"{measured:>10.0f}{expected / measured - 1:>+9.0%}",
        flush=True,
    )
    case = {"method": name, "images_per_class": per_class, "width": width, "batch": batch_size}
    megabytes = {"pool": pool, "estimated_megabytes": expected, "measured_megabytes": measured}
    append_lines(out, [case | megabytes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    if args.only is not None:
        one(*SETTINGS[args.only], args.out)
        return
    print_header("Memory of a step: estimated and measured, MB")
    columns = f"{'a class':>5}{'width':>6}{'batch':>7}{'pool':>6}{'estimate':>10}{'measured':>10}"
    print(f"{'method':<20}{columns}{'off by':>9}", flush=True)
    for number in range(len(SETTINGS)):
        command = [sys.executable, __file__, "--only", str(number)]
        command += ["--out", args.out] if args.out else []
        subprocess.run(command, check=True, env=os.environ | AT_ONCE)


if __name__ == "__main__":
    main()
