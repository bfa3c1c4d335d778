"""One step of this version against another's, interleaved: seconds to compile, seconds a step.

    git worktree add /tmp/before v0.1.0
    python benchmarks/versions.py --against /tmp/before

A process for each version compiles the same steps on the same data, and the two take turns step by
step. What is compared are CPU seconds, which other work on the machine disturbs less than the
clock: medians over `--repeats` turns, and the ratio of this version's to the other's. `MB` are the
compiler's temporaries.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

METHODS = ("exact", "head only", "paper")


def work():
    """Answer each line of standard input, a case to compile or to take a step of."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from rcig_eqx import Recipe, convnet_for, data, init, methods, platt_loss, step
    from rcig_eqx.solvers import Adam

    try:
        from rcig_eqx.initializers import real_coreset
    except ImportError:  # before that room was there
        from rcig_eqx import real_coreset

    train = data.load("fashion_mnist_small", "train")
    preprocess = data.standardize(train.images)
    made = {
        "exact": methods.rcig(),
        "head only": methods.frepo(outer_loss=platt_loss),
        "paper": methods.rcig_paper(inner=Adam(1e-3), solver=Adam(1e-2)),
    }
    steps = {}
    for line in sys.stdin:
        name, images_per_class, width, batch_size = case = tuple(json.loads(line))
        began = time.process_time()
        if case not in steps:
            coreset = real_coreset(train, images_per_class, preprocess, key=jr.key(0))
            model = convnet_for(train.image_shape, train.num_classes, width=width)
            state = init(coreset, Recipe(made[name], model), key=jr.key(1))
            batch = preprocess(train.images[:batch_size]), jnp.asarray(train.labels[:batch_size])
            jax.block_until_ready(eqx.filter(state, eqx.is_array))
            began = time.process_time()
            function = eqx.filter_jit(step).lower(state, batch).compile()
            steps[case] = function, state, batch
            memory = function.compiled.memory_analysis().temp_size_in_bytes / 1e6
        else:
            function, state, batch = steps[case]
            jax.block_until_ready(eqx.filter(function(state, batch), eqx.is_array))
            memory = 0.0
        print(json.dumps([time.process_time() - began, memory]), flush=True)


class Worker:
    """A process that runs `work` with one version's library."""

    def __init__(self, root: Path):
        command = [sys.executable, __file__, "--work"]
        source = str(root.resolve() / "src")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"PYTHONPATH": source, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip

    def ask(self, case) -> list[float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="root of the other version's tree")
    parser.add_argument("--images-per-class", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work()
    both = Worker(Path(__file__).parents[1]), Worker(args.against)
    print(f"{'step':<20}{'compile':>9}{'ratio':>7}{'seconds':>9}{'ratio':>7}{'MB':>9}{'ratio':>7}")
    for images_per_class in args.images_per_class:
        for name in args.methods:
            case = (name, images_per_class, args.width, args.batch_size)
            compiled, memory = zip(*(worker.ask(case) for worker in both), strict=True)
            turns = [[worker.ask(case)[0] for worker in both] for _ in range(args.repeats)]
            seconds = [statistics.median(column) for column in zip(*turns, strict=True)]
            cells = (compiled, 9, ".1f"), (seconds, 9, ".3f"), (memory, 9, ".1f")
            row = "".join(f"{a:{w}{f}}{a / b:7.3f}" for (a, b), w, f in cells)
            print(f"{name}, {images_per_class:<{18 - len(name)}}{row}", flush=True)


if __name__ == "__main__":
    main()
