"""Several devices against one: how far the numbers part, and the bytes that cross.

    python benchmarks/devices.py

Simulated devices share the cores of one machine, and processes too: nothing here is about speed.
Every case starts from the same state and takes the same batches. What changes with the number of
devices is the order of sums; for comparison, one device with each batch's rows in reverse.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests" / "run"))

from _collectives import collective_bytes

from _common import print_header
from rcig_eqx import PoolSchedule, Recipe, coreset_optimizer, data, growing_average, init, step
from rcig_eqx.initializers import real_coreset
from rcig_eqx.methods import rcig
from rcig_eqx.models import ConvNet, count_parameters
from rcig_eqx.run import make_mesh, place, shard_rows
from rcig_eqx.run._devices import on_mesh, own_rows

STEPS, BATCH, POOL = 3, 64, 8
QUICK = "--xla_backend_optimization_level=0"  # nothing is timed: half the time to compile


def problem(networks, width, depth):
    """The first state of a run at one image per class, in the widest floats switched on."""
    dtype = jnp.zeros(()).dtype
    train = data.load("fashion_mnist_small", "train")
    preprocess = data.default_preprocess(train.images)
    coreset = real_coreset(train, 1, preprocess, key=jr.key(0))
    wide = lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x  # noqa: E731
    given = {"in_channels": 1, "image_size": 28, "num_classes": 10}

    def make_model(key):
        return ConvNet(**given, width=width, depth=depth, softplus=60.0, dtype=dtype, key=key)

    schedule = PoolSchedule(size=POOL, networks_per_step=networks)
    recipe = Recipe(rcig(), make_model, coreset_optimizer(), schedule, growing_average())
    images = np.asarray(preprocess(train.images), dtype)
    state = init(jax.tree.map(wide, coreset), recipe, key=jr.key(1))
    return state, images, train.labels.astype(np.int32)


def compiled(networks, args, batch_size, mesh):
    """A compiled step, the state to begin with, and a function from a number to its batch."""
    state, images, labels = problem(networks, args.width, args.depth)
    state = place(state, mesh) if mesh else state
    rows = own_rows(mesh, batch_size)

    def batch(number, reverse=False):
        rng = np.random.default_rng(number)
        chosen = rng.choice(len(images), batch_size, replace=False)
        chosen = (chosen[::-1] if reverse else chosen)[rows]
        return tuple(shard_rows(x[chosen], mesh, batch_size) for x in (images, labels))

    with on_mesh(mesh):
        return eqx.filter_jit(step).lower(state, batch(0)).compile(), state, batch


def save(run, state, batch, mesh, path, *, reverse=False):
    """ψ, its average and the pool after a few steps."""
    with on_mesh(mesh):
        for number in range(STEPS):
            state, _ = run(state, batch(number, reverse))
    parts = {"set": (state.psi, state.average), "pool": state.pool.model}
    arrays = {
        f"{name}{i}": np.asarray(x)
        for name, part in parts.items()
        for i, x in enumerate(jax.tree.leaves(eqx.filter(part, eqx.is_array)))
    }
    np.savez(path, **arrays)


def work(args):
    """What a process of its own does: one number of devices, one and two networks a step."""
    if args.port:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{args.port}", 2, args.index)
    several = args.devices > 1 or args.port
    for networks in (1, 2):
        mesh = make_mesh(jax.devices(), networks_per_step=networks) if several else None
        if args.bytes:
            for batch_size in args.batches:
                run, state, _ = compiled(networks, args, batch_size, mesh)
                once, each_pass = collective_bytes(run.compiled.as_text())
                count = count_parameters(jax.tree.map(lambda x: x[0], state.pool.model))
                print(
                    f"| {networks} | {batch_size} | {count:,} | {once:,} | {each_pass} |",
                    flush=True,
                )
            continue
        ready = compiled(networks, args, BATCH, mesh)
        save(*ready, mesh, f"{args.out}{networks}.npz")
        if not several:
            save(*ready, mesh, f"{args.out}{networks}r.npz", reverse=True)


def start(args, devices, bits, out, *more):
    """The same script as a process of its own."""
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
        "JAX_ENABLE_X64": str(bits == 64),
    }
    command = [sys.executable, __file__, "--devices", devices, "--out", out, "--width", args.width]
    command += ["--depth", args.depth, "--batches", *args.batches, *more]
    return subprocess.Popen(list(map(str, command)), env=env)


def finish(*processes):
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a process failed")


def difference(one, many, kind):
    """The largest difference of any number, relative to the largest of its array."""
    a, b = np.load(one), np.load(many)
    names = [name for name in a.files if name.startswith(kind)]
    return max(np.abs(a[n] - b[n]).max() / np.abs(a[n]).max() for n in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--devices", type=int, help="what a process of its own is given")
    for name in ("--port", "--index"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.devices:
        work(args)
        return
    network = f"width {args.width}, depth {args.depth}"
    print_header(f"Several devices against one: {network}, batch {BATCH}, {STEPS} steps")
    with tempfile.TemporaryDirectory() as folder:
        print("| networks a step | batch | parameters | bytes a step | a pass of a loop |")
        print("|---|---|---|---|---|", flush=True)
        finish(start(args, 4, 32, "", "--bytes"))
        print("\n| bits | networks a step | on | distilled set | networks |\n|---|---|---|---|---|")
        for bits in (64, 32):
            out = {name: str(Path(folder) / f"{bits}-{name}-") for name in (1, 2, 4, 8, "p", "q")}
            for devices in (1, 2, 4, 8):
                finish(start(args, devices, bits, out[devices]))
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            finish(
                *(
                    start(args, 1, bits, out[name], "--port", port, "--index", index)
                    for index, name in enumerate("pq")
                )
            )
            for networks in (1, 2):
                one = f"{out[1]}{networks}.npz"
                cases = {f"{n} devices": f"{out[n]}{networks}.npz" for n in (2, 4, 8)}
                cases |= {
                    f"2 processes, {i}": f"{out[n]}{networks}.npz" for i, n in enumerate("pq")
                }
                cases["1 device, rows reversed"] = f"{out[1]}{networks}r.npz"
                for name, path in cases.items():
                    parts = [difference(one, path, kind) for kind in ("set", "pool")]
                    print(f"| {bits} | {networks} | {name} | {parts[0]:.0e} | {parts[1]:.0e} |")


if __name__ == "__main__":
    main()
