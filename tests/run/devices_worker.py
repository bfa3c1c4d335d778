"""What `test_devices.py` runs in processes of their own: devices are counted when JAX starts.

python devices_worker.py steps DEVICES CASE…          prints JSON: one device against several
python devices_worker.py distill INDEX COUNT PORT OUT  one process of several; saves its result
"""

import json
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from _collectives import collective_bytes

from _run import distill
from rcig_eqx import (
    Coreset,
    PoolSchedule,
    Recipe,
    State,
    _subsample,
    convnet_for,
    coreset_optimizer,
    growing_average,
    init,
    platt_loss,
    step,
)
from rcig_eqx.methods import AbstractMethod, frepo, rcig, rcig_paper, staged
from rcig_eqx.models import ConvNet
from rcig_eqx.run import make_mesh, place, shard_rows
from rcig_eqx.run._devices import on_mesh
from rcig_eqx.solvers import Adam

CLASSES, SIZE, BATCH = 3, 8, 16


def make_method(name: str) -> AbstractMethod:
    if name == "staged":
        return staged(frepo(), rcig(), 1)
    return {
        "frepo": frepo(outer_loss=platt_loss),
        "rcig": rcig(),
        "cholesky": rcig(solver=lx.Cholesky()),
        "paper": rcig_paper(inner=Adam(0.01, 3), solver=Adam(0.01, 3)),
    }[name]


def problem(method: str, networks: int) -> State:
    """A tiny run's first state, in the widest floats JAX has switched on."""
    dtype = jnp.zeros(()).dtype

    def make_model(key):
        given: dict[str, Any] = {"in_channels": 1, "image_size": SIZE, "num_classes": CLASSES}
        return ConvNet(**given, width=4, depth=1, softplus=3.0, dtype=dtype, key=key)

    keys = jr.split(jr.key(0), 2)
    coreset = Coreset(
        jr.normal(keys[0], (2 * CLASSES, SIZE, SIZE, 1)),
        jr.normal(keys[1], (2 * CLASSES, CLASSES)),
        jnp.asarray(0.3, dtype),
    )
    schedule = PoolSchedule(size=8, networks_per_step=networks)
    recipe = Recipe(
        make_method(method), make_model, coreset_optimizer(), schedule, growing_average()
    )
    return init(coreset, recipe, key=jr.key(1))


def advance(devices: int | None, method: str, networks: int, steps: int, batch_size: int = BATCH):
    """The state after a few steps, their metrics, and the bytes that cross between devices."""
    state, mesh = problem(method, networks), None
    if devices is not None:
        mesh = make_mesh(jax.devices()[:devices], networks_per_step=networks)
        state = place(state, mesh)
    rng = np.random.default_rng(0)
    metrics, run, program = [], None, ""
    with on_mesh(mesh):
        for _ in range(max(steps, 1)):
            images = rng.normal(size=(batch_size, SIZE, SIZE, 1)).astype(jnp.zeros(()).dtype)
            labels = rng.integers(0, CLASSES, batch_size).astype(np.int32)
            batch = tuple(shard_rows(x, mesh, batch_size) for x in (images, labels))
            if run is None:
                compiled: Any = eqx.filter_jit(step)
                run = compiled.lower(state, batch).compile()
                program = run.compiled.as_text()
            if steps:
                state, out = run(state, batch)
                metrics.append({name: float(x) for name, x in out.items()})
    return state, metrics, collective_bytes(program)


def numbers(state: State) -> list[np.ndarray]:
    matters = (state.psi, state.average, state.pool.model, state.pool.age)
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(eqx.filter(matters, eqx.is_array))]


def difference(a: State, b: State) -> float:
    """The largest difference of any number, relative to the largest of its array."""
    pairs = zip(numbers(a), numbers(b), strict=True)
    return max(float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-3)) for x, y in pairs)


def compare(devices: int, cases: list[str], steps: int = 3) -> dict:
    """Cases: `rcig/2` is method and networks a step; `rcig/2/64` counts at that batch size alone;
    `chunks/48` is a batch of so many images, beyond `IMAGES_HELD`."""
    report = {}
    for case in cases:
        method, networks, *batch_size = case.split("/")
        if method == "chunks":
            report[case] = chunks(devices, int(networks))
            continue
        if batch_size:
            _, _, crossing = advance(devices, method, int(networks), 0, int(batch_size[0]))
            report[case] = {"crossing": crossing}
            continue
        one, ones, _ = advance(None, method, int(networks), steps)
        many, manys, crossing = advance(devices, method, int(networks), steps)
        parameters = jax.tree.leaves(eqx.filter(one.pool.model, eqx.is_array))
        report[case] = {
            "difference": difference(one, many),
            "metrics": [ones, manys],
            "crossing": crossing,
            "parameters": sum(x.size // len(x) for x in parameters),
            "replicated": all(
                x.sharding.is_fully_replicated and len(x.sharding.device_set) == devices
                for x in jax.tree.leaves(eqx.filter(many, eqx.is_array))
            ),
        }
    return report


def chunks(devices: int, n: int) -> dict:
    """A sum over a batch in chunks, and its gradient: on one device and on several."""
    _subsample.IMAGES_HELD = 16
    mesh = make_mesh(jax.devices()[:devices])
    images = np.random.default_rng(0).normal(size=(n, SIZE, SIZE, 1))
    kernel = jnp.linspace(-1.0, 1.0, SIZE * SIZE).reshape(SIZE, SIZE, 1)

    def loss(kernel, images):
        rows = _subsample.in_chunks(
            lambda x: jnp.sum(jnp.tanh(kernel[None] * x), (1, 2, 3)), images
        )
        return jnp.sum(rows**2 * jnp.arange(float(n)))

    one = jax.jit(jax.grad(loss))(kernel, jnp.asarray(images))
    with on_mesh(mesh):
        args = place(kernel, mesh), shard_rows(images, mesh, n)
        run = jax.jit(jax.grad(loss)).lower(*args).compile()
        many = run(*args)
    difference = float(np.abs(np.asarray(one) - np.asarray(many)).max())
    return {"difference": difference, "crossing": collective_bytes(run.as_text() or "")}


# What each process of several distills: a set "on disk", so that each decodes its own rows alone.
IMAGES = np.random.default_rng(1).integers(0, 256, (480, SIZE, SIZE, 1), np.uint8)
LABELS = np.arange(480) % CLASSES
decoded: set[int] = set()


def decode(index: int) -> tuple[np.ndarray, int]:
    decoded.add(int(index))
    return IMAGES[index], LABELS[index]


RUN: dict[str, Any] = {
    "images_per_class": 2,
    "method": frepo(outer_loss=platt_loss),
    "model": convnet_for((SIZE, SIZE, 1), CLASSES, width=4, depth=1),
    "recipe": Recipe(pool=PoolSchedule(size=4)),
    "batch_size": BATCH,
}


def several(index: int, count: int, port: str, out: str) -> None:
    """One process of several: a run that process 1 alone asks to end after step 3."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    train = grain.MapDataset.range(len(IMAGES)).map(decode)
    run: dict[str, Any] = RUN | {"key": jr.key(3)}

    def stop(report) -> bool:
        if report.step == 1:
            decoded.clear()
        return index == 1 and report.step == 3

    run |= {"devices": jax.devices()}
    kept: dict[str, Any] = {"checkpoint_dir": Path(out).parent / "run", "checkpoint_every": 0.0}
    result = distill(train, **run, **kept, steps=20, callbacks=(stop,))
    arrays: dict[str, Any] = {"decoded": sorted(decoded), "loss": result.history["loss"]}
    resumed = distill(train, **run, **kept, steps=6, resume=True).last
    whole = distill(train, **run, steps=6).last
    arrays |= {"images": result.last.images, "labels": result.last.labels}
    arrays |= {"resumed": resumed.images, "whole": whole.images}
    try:  # process 0 alone writes
        distill(train, **run, checkpoint_dir=Path(__file__) / "folder", steps=2)
    except OSError as error:
        arrays["unwritable"] = str(error)
    run["images_per_class"] = 1 + index  # the processes disagree
    try:
        distill(train, **run, steps=2)
    except ValueError as error:
        arrays["refused"] = str(error)
    np.savez(out, **arrays)


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "steps":
        jax.config.update("jax_numpy_rank_promotion", "raise")
        print(json.dumps(compare(int(rest[0]), rest[1:])))
    else:
        several(int(rest[0]), int(rest[1]), rest[2], rest[3])
