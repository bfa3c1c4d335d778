"""The exact step against the paper's truncated one, and the head-only step beside both.

    python benchmarks/step.py --images-per-class 1 --out benchmarks/results/step.jsonl
    python benchmarks/step.py --images-per-class 10 --out benchmarks/results/step.jsonl

Each is the whole hypergradient at one network and one outer batch: same network, same batch,
one process, compile time apart. The cosine is to the exact hypergradient in the images, solved
in float64. The truncated step's two learning rates are the best of a grid, which it gets for
free here. Then what the parts of a full step cost.
"""

import argparse
import functools
import itertools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np

from _common import append_lines, compile_and_time, cosine, hypergradient_of, print_header, setting
from _truncated import truncated_hypergradient
from rcig_eqx import (
    PoolSchedule,
    Recipe,
    convnet_for,
    coreset_optimizer,
    data,
    growing_average,
    init,
    platt_loss,
    step,
)
from rcig_eqx._pool import new_member, train_member
from rcig_eqx.methods import AbstractMethod, frepo, linearize, rcig
from rcig_eqx.operators import NTK
from rcig_eqx.solvers import ConjugateGradient
from rcig_eqx.solvers._dual import prepare_kernel


def reference(problem):
    """The exact hypergradient in float64, Cholesky throughout."""
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, problem
        )
        solve = hypergradient_of(rcig(solver=lx.Cholesky()))
        return jax.device_get(jax.jit(solve)(*wide).gradient.images)


def best_rates(problem, exact):
    """The truncated step's learning rates with the highest cosine, of a grid."""

    @jax.jit
    def images_gradient(inner_rate, inverse_rate, *problem):
        return truncated_hypergradient(
            *problem, inner_rate=inner_rate, inverse_rate=inverse_rate
        ).gradient.images

    def score(rates):
        got = cosine(images_gradient(*rates, *problem), exact)
        return got if got == got else -1.0

    grid = itertools.product((1e-3, 3e-3, 1e-2, 3e-2), (1e-2, 1e-1, 1.0))
    return max(grid, key=score)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--pool-steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--default-schedule", action="store_true", help="XLA's own on CPU")
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    print_header(
        f"Hypergradient at {args.images_per_class} images per class, outer batch "
        f"{args.batch_size}, width {args.width}, network after {args.pool_steps} pool steps"
    )
    problem = setting(
        args.images_per_class, args.batch_size, width=args.width, pool_steps=args.pool_steps
    )
    exact = reference(problem)
    inner_rate, inverse_rate = best_rates(problem, exact)
    candidates = {
        "exact": hypergradient_of(rcig()),
        "exact, Cholesky": hypergradient_of(rcig(solver=lx.Cholesky())),
        "exact, CG 1e-3": hypergradient_of(rcig(solver=ConjugateGradient(1e-3))),
        "exact, CG 1e-2": hypergradient_of(rcig(solver=ConjugateGradient(1e-2))),
        f"Adam 20/20 ({inner_rate:g}, {inverse_rate:g})": functools.partial(
            truncated_hypergradient, inner_rate=inner_rate, inverse_rate=inverse_rate
        ),
        "head only": hypergradient_of(frepo(outer_loss=platt_loss)),
    }
    time_all = functools.partial(
        compile_and_time, repeats=args.repeats, default_schedule=args.default_schedule
    )
    print(f"{'step':<28}{'seconds':>9}{'quartiles':>16}{'temp MB':>9}{'cosine':>10}{'compile':>9}")
    for name, timing in time_all({n: (f, problem) for n, f in candidates.items()}).items():
        angle = cosine(timing.result.gradient.images, exact)
        print(f"{name:<28}{timing}{angle:10.6f}{timing.compile_seconds:8.1f}s", flush=True)
        keep(args, timing, part="hypergradient", method=name.partition(" (")[0], cosine=angle)
    full_steps(problem, args, inner_rate, inverse_rate, time_all)
    breakdown(problem, args, time_all)


def keep(args, timing, **what):
    """Append a timing to `--out`."""
    names = ("images_per_class", "width", "batch_size", "pool_steps")
    setting = {name: getattr(args, name) for name in names}
    append_lines(args.out, [setting | what | timing.row()])


class Truncated(AbstractMethod):
    """The paper's truncated hypergradient as a method, to run the library's own step with."""

    inner_rate: float
    inverse_rate: float

    def hypergradient(self, model, coreset, images, targets, *, key):
        del key
        return truncated_hypergradient(
            model,
            coreset,
            images,
            targets,
            inner_rate=self.inner_rate,
            inverse_rate=self.inverse_rate,
        )


def full_steps(problem, args, inner_rate, inverse_rate, time_all):
    """The whole of Algorithm 1's iteration, pool training and update included."""
    _, coreset, images, targets = problem
    batch = (images, jnp.argmax(targets, -1))
    make_model = convnet_for(images.shape[1:], coreset.num_classes, width=args.width)
    schedule = PoolSchedule(size=2, min_visit=8, max_visit=8)  # the authors' code's mean visit
    methods = {
        "exact": rcig(),
        "Adam 20/20": Truncated(inner_rate, inverse_rate),
        "head only": frepo(outer_loss=platt_loss),
    }
    functions = {}
    for name, method in methods.items():
        recipe = Recipe(method, make_model, coreset_optimizer(), schedule, growing_average())
        arrays, static = eqx.partition(init(coreset, recipe, key=jr.key(0)), eqx.is_array)

        def advance(arrays, batch, static=static):
            state, metrics = step(eqx.combine(arrays, static), batch)
            return eqx.filter(state, eqx.is_array), metrics

        functions[name] = (advance, (arrays, batch))
    print(f"\n{'full step':<28}{'seconds':>9}{'quartiles':>16}{'temp MB':>9}")
    for name, timing in time_all(functions).items():
        print(f"{name:<28}{timing}", flush=True)
        keep(args, timing, part="iteration", method=name)


def breakdown(problem, args, time_all):
    """The parts of a full step, each timed alone."""
    model, coreset, images, _ = problem
    schedule = PoolSchedule()

    def outer_passes(model, images):
        at = linearize(model, images)
        parameters = eqx.filter(model, eqx.is_inexact_array)
        return at.vjp(at.jvp(parameters))

    def by(solver):
        def one_solve(model, coreset):
            K = NTK(model, coreset.images, 5e-4 * len(coreset.labels))
            return prepare_kernel(K, solver)[0].solve(coreset.labels)[0]

        return one_solve

    def pool_training(member, coreset):
        return train_member(member, coreset.images, coreset.labels, 8, schedule).model

    make_model = convnet_for(images.shape[1:], coreset.num_classes, width=args.width)
    member = new_member(make_model, schedule, key=jr.key(1))
    parts = {
        "outer batch: forward, tangent, transpose": (outer_passes, (model, images)),
        "dual solve by CG to 1e-3, once": (by(ConjugateGradient()), (model, coreset)),
        "dual matrix, factored, solved": (by(lx.Cholesky()), (model, coreset)),
        "pool training, 8 steps (the code's mean)": (pool_training, (member, coreset)),
    }
    print(f"\n{'part of a step':<44}{'seconds':>9}{'quartiles':>16}{'temp MB':>9}")
    for name, timing in time_all(parts).items():
        print(f"{name:<44}{timing}", flush=True)
        keep(args, timing, part=name)
    train = np.zeros((60_000, *images.shape[1:]), np.float32), np.zeros(60_000, np.int32)
    batches = data.stream(train, len(images), seed=0)
    next(batches)
    began = time.perf_counter()
    for _ in range(500):
        next(batches)
    print(f"{'data, a batch out of 60,000 images':<44}{(time.perf_counter() - began) / 500:9.5f}")


if __name__ == "__main__":
    main()
