"""Several devices, several networks a step and several processes, against one."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from _collectives import collective_bytes
from devices_worker import BATCH, CLASSES, IMAGES, LABELS, RUN, SIZE
from jax.sharding import AbstractMesh

from rcig_eqx import Coreset, PoolSchedule, Recipe, convnet_for, distill, ema, init, step
from rcig_eqx._pool import choose
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.methods import AbstractMethod, frepo, rcig, staged
from rcig_eqx.run import make_mesh, place
from rcig_eqx.run._devices import (
    Agreement,
    check_batch_divides,
    rows_of,
    shared_batch,
)
from rcig_eqx.run._guard import average_networks

QUICK = "--xla_backend_optimization_level=0"  # half the time to compile
WORKER = Path(__file__).with_name("devices_worker.py")


def start(*args: object, devices: int = 1, bits: int = 32) -> subprocess.Popen:
    """A Python of its own that sees so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "JAX_ENABLE_X64": str(bits == 64),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, str(WORKER), *map(str, args)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return out


@functools.cache
def compared(devices: int, bits: int, *cases: str) -> dict:
    """What the worker says of each case."""
    return json.loads(finish(start("steps", *[devices, *cases], devices=devices, bits=bits)))


def check_same(found: dict, tolerance: float) -> None:
    assert found["replicated"]
    assert found["difference"] < tolerance
    for one, many in zip(*found["metrics"], strict=True):
        assert one.keys() == many.keys()
        assert one == pytest.approx(many, rel=tolerance, abs=tolerance)


DEFAULT = ("rcig/1", "frepo/2", "frepo/2/64", "chunks/48", "chunks/56")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rcig/1", "frepo/2"])
def test_two_devices_do_what_one_does(case):
    check_same(compared(2, 64, *DEFAULT)[case], 1e-10)


def test_what_crosses_does_not_grow_with_the_batch():
    report = compared(2, 64, *DEFAULT)
    assert report["frepo/2"]["crossing"] == report["frepo/2/64"]["crossing"]


def test_the_exact_step_sums_one_gradient_of_the_network_alone():
    found = compared(2, 64, *DEFAULT)["rcig/1"]
    assert found["parameters"] == 475
    once, each_pass = found["crossing"]
    # And a few scalars: one number a row of the batch would be more.
    assert 8 * 475 <= once < 8 * (475 + BATCH)
    assert each_pass == 0


def test_a_batch_in_chunks_stays_where_it_is():
    report = compared(2, 64, *DEFAULT)
    for case, gradients in (("chunks/48", 1), ("chunks/56", 2)):  # a shorter chunk has its own
        once, each_pass = report[case]["crossing"]
        assert report[case]["difference"] < 1e-10
        assert 0 < once + each_pass <= gradients * 8 * SIZE * SIZE


ALL = ("frepo/1", "rcig/1", "rcig/2", "rcig/4", "cholesky/1", "cholesky/2", "paper/2", "staged/2")
COUNTED = tuple(f"{case}/64" for case in ("rcig/1", "rcig/2", "cholesky/2", "staged/2"))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_every_method_on_more_devices(devices, bits):
    report = compared(devices, bits, *ALL, *COUNTED, "chunks/56")
    assert bits == 32 or report["chunks/56"]["difference"] < 1e-10
    for case in ALL:
        check_same(report[case], 1e-10 if bits == 64 else 1e-3)
    for case in COUNTED:
        assert report[case]["crossing"] == report[case.removesuffix("/64")]["crossing"]


# Several processes


def test_two_processes_do_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{index}.npz" for index in range(2)]
    running = [start("distill", index, 2, port, out) for index, out in enumerate(outs)]
    train = grain.MapDataset.range(len(IMAGES)).map(lambda i: (IMAGES[i], LABELS[i]))
    one = distill(train, **RUN, key=jr.key(3), steps=4, progress=False)
    errors = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    first, second = map(np.load, outs)
    # Process 1 asked for the end after step 3; both stopped after the next.
    assert len(first["loss"]) == len(second["loss"]) == 4
    for name in ("images", "labels", "loss"):
        assert first[name].tobytes() == second[name].tobytes()
    np.testing.assert_allclose(first["loss"], one.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(first["images"], one.last.images, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(first["labels"], one.last.labels, rtol=1e-3, atol=1e-4)
    assert len(list((tmp_path / "run").iterdir())) == 3  # process 0 alone writes
    for out in (first, second):
        assert out["resumed"].tobytes() == out["whole"].tobytes() == first["whole"].tobytes()
    # After the images looked at before the run, each decoded its own rows alone.
    assert not set(first["decoded"]) & set(second["decoded"])
    assert 3 * BATCH // 2 <= len(first["decoded"]) < len(IMAGES) // 2
    for out in (first, second):
        assert "asked for different runs" in str(out["refused"])
        assert "choose another folder" in str(out["unwritable"])
    assert "loss" in errors[0]
    assert "loss" not in errors[1]  # process 0 alone shows progress


@pytest.mark.parametrize(
    ("process", "processes", "rows"),
    [
        (0, [[0, 0, 1, 1]], (0, 6)),
        (1, [[0, 0, 1, 2]], (6, 9)),
        (1, [[0, 1], [0, 1]], (6, 12)),
        (1, [[0], [1]], (0, 12)),
        (0, [[0, 0, 1], [0, 1, 1]], (0, 8)),
    ],
)
def test_rows_of_a_process(process, processes, rows):
    assert rows_of(process, np.array(processes), 12) == slice(*rows)


def test_one_process_agrees_with_itself():
    for mesh in (None, make_mesh(jax.devices())):
        agreed = Agreement(mesh)
        assert [agreed(False), agreed(True)] == [False, True]


# Several networks a step


class weighing(AbstractMethod):
    """A hypergradient that tells the network: ones times its head's first number, which is 0 at
    the start; not a number for a marked one."""

    def hypergradient(self, model, coreset, images, targets, *, key):
        weight = model.head.kernel.ravel()[0]
        gradient = jax.tree.map(lambda x: jnp.ones_like(x) * weight, coreset)
        return Hypergradient(weight, gradient, {"accuracy": weight, "iterations": jnp.asarray(2)})


SCHEDULE = PoolSchedule(size=5, networks_per_step=3, min_visit=1, max_visit=1)
network = convnet_for((SIZE, SIZE, 1), CLASSES, width=2, depth=1)


@pytest.fixture(scope="module")
def marked():
    """A compiled step, and a state whose networks' heads begin with 0, 1, 2, … ."""
    coreset = Coreset(jnp.zeros((3, SIZE, SIZE, 1)), jnp.eye(3), jnp.zeros(()))
    recipe = Recipe(weighing(), network, optax.sgd(1.0), SCHEDULE, ema(0.5))
    state = init(coreset, recipe, key=jr.key(0))
    where = lambda s: s.pool.model.head.kernel  # noqa: E731
    kernel = where(state).at[:, 0, 0].set(jnp.arange(5.0))
    batch = (jnp.zeros((4, SIZE, SIZE, 1)), jnp.zeros(4, jnp.int32))
    return eqx.filter_jit(step), eqx.tree_at(where, state, kernel), batch


def drawn(state) -> np.ndarray:
    index_key = jr.split(jr.fold_in(state.key, state.step), 3)[0]
    return np.asarray(choose(SCHEDULE, key=index_key))


def test_a_step_averages_different_networks_and_visits_each(marked):
    advance, state, batch = marked
    index = drawn(state)
    assert len(set(index)) == 3
    after, metrics = advance(state, batch)
    assert float(metrics["loss"]) == pytest.approx(index.mean())
    np.testing.assert_allclose(after.psi.images, -index.mean(), rtol=1e-6)
    assert int(metrics["iterations"]) == 2
    assert np.flatnonzero(after.pool.age).tolist() == sorted(index)
    kept = np.setdiff1d(np.arange(5), index)
    for x, y in zip(
        *(jax.tree.leaves(eqx.filter(s.pool, eqx.is_array)) for s in (state, after)), strict=True
    ):
        np.testing.assert_array_equal(x[kept], y[kept])


def test_a_network_without_a_finite_hypergradient_is_left_out_and_replaced(marked):
    advance, state, batch = marked
    index = drawn(state)
    bad = lambda s, at: eqx.tree_at(  # noqa: E731
        lambda s: s.pool.model.head.kernel, s, replace_fn=lambda k: k.at[at, 0, 0].set(jnp.nan)
    )
    after, metrics = advance(bad(state, index[0]), batch)
    assert not metrics["rejected"]
    np.testing.assert_allclose(after.psi.images, -index[1:].mean(), rtol=1e-6)
    assert np.asarray(after.pool.age)[index].tolist() == [0, 1, 1]
    assert np.isfinite(after.pool.model.head.kernel).all()
    assert np.isfinite(after.pool.opt_state[0].mu.head.kernel).all()

    after, metrics = advance(bad(state, index), batch)
    assert metrics["rejected"]
    np.testing.assert_array_equal(after.psi.images, state.psi.images)
    assert np.asarray(after.pool.age)[index].tolist() == [0, 0, 0]
    assert np.isfinite(after.pool.model.head.kernel).all()


def test_statistics_of_several_networks():
    stats = {
        "accuracy": jnp.array([0.5, 0.1, 0.7]),
        "iterations": jnp.array([3, 9, 4]),
        "residual": jnp.array([0.1, 0.5, 0.2]),
        "step_times_curvature": jnp.array([1.0, 2.5, 0.9]),
        "converged": jnp.array([True, False, True]),
        "inner_diverged": jnp.array([False, True, False]),
    }
    make = lambda *parts: Hypergradient(*parts)  # noqa: E731  a class would see the whole arrays
    gradients = {"x": jnp.arange(6.0).reshape(3, 2)}
    each = eqx.filter_vmap(make)(jnp.array([1.0, jnp.nan, 2.0]), gradients, stats)
    mean = average_networks(each, jnp.array([True, False, True]))
    assert float(mean.value) == 1.5
    np.testing.assert_allclose(mean.gradient["x"], [2.0, 3.0])
    expected = {"accuracy": 0.6, "iterations": 9, "residual": 0.5, "step_times_curvature": 2.5}
    assert {k: float(mean.stats[k]) for k in expected} == pytest.approx(expected)
    assert not mean.stats["converged"]
    assert mean.stats["inner_diverged"]


def test_methods_in_stages_stay_a_branch():
    recipe = Recipe(staged(frepo(), rcig(), 1), network, optax.sgd(1.0), SCHEDULE, ema(0.5))
    coreset = Coreset(jnp.ones((3, SIZE, SIZE, 1)), jnp.eye(3), jnp.zeros(()))
    state = init(coreset, recipe, key=jr.key(0))
    arrays, static = eqx.partition(state, eqx.is_array)
    batch = (jnp.zeros((4, SIZE, SIZE, 1)), jnp.zeros(4, jnp.int32))

    def advance(arrays):
        return eqx.filter(step(eqx.combine(arrays, static), batch), eqx.is_array)

    branches = [e for e in jax.make_jaxpr(advance)(arrays).eqns if e.primitive.name == "cond"]
    branches = [e for e in branches if e.outvars[0].aval.shape[:1] == (3,)]  # not why one failed
    assert len(branches) == 1
    assert branches[0].invars[0].aval.shape == ()


# The mesh


def test_a_mesh_divides_networks_then_rows():
    one = make_mesh(jax.devices()[:1], networks_per_step=4)
    assert dict(one.shape) == {"network": 1, "batch": 1}


def test_a_batch_that_devices_cannot_share():
    mesh = AbstractMesh((2, 4), ("network", "batch"))
    check_batch_divides(mesh, 12)
    with pytest.raises(ValueError, match=r"batch_size is 14, .* multiple of 4, such as 12"):
        check_batch_divides(mesh, 14)
    with pytest.raises(ValueError, match="such as 4"):
        check_batch_divides(mesh, 3)


def test_a_default_batch_is_one_that_devices_can_share():
    mesh = AbstractMesh((2, 3), ("network", "batch"))
    assert [shared_batch(mesh, n) for n in (64, 63, 2)] == [63, 63, 3]
    assert shared_batch(None, 64) == 64


def test_any_state_can_be_placed():
    mesh = make_mesh(jax.devices()[:1])
    state = {"jax": jnp.arange(3), "numpy": np.ones(2, np.float32), "key": jr.key(4), "name": "x"}
    placed = place(state, mesh)
    assert placed["name"] == "x"
    assert {placed[name].sharding.mesh for name in ("jax", "numpy", "key")} == {mesh}
    assert jr.key_data(placed["key"]).tolist() == jr.key_data(jr.key(4)).tolist()
    np.testing.assert_array_equal(placed["jax"], state["jax"])
    jax.jit(lambda x: x + 1, donate_argnums=0)(placed["jax"])
    assert state["jax"].tolist() == [0, 1, 2]  # the memory given away was not its own


def test_bytes_are_counted_from_the_program():
    program = """
%body (x: f32[4]) -> f32[4] {
  %g = bf16[2,3]{1,0} all-gather(%x), dimensions={0}
}

%branch (x: f32[4]) -> f32[4] {
  %p = f64[5]{0} collective-permute(%x), channel_id=4
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %a = (f32[3,4]{1,0}, pred[], s32[7]{0}) all-reduce(%x, %y, %z), to_apply=%add
  %b = f32[4]{0} conditional(%p, %x), branch_computations={%branch}
  ROOT %w = f32[4]{0} while(%a), condition=%cond, body=%body
}
"""
    assert collective_bytes(program) == (3 * 4 * 4 + 1 + 7 * 4 + 5 * 8, 2 * 3 * 2)
