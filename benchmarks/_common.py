"""What the benchmarks share: the setting they measure in, and how they time."""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from rcig_eqx import convnet_for, data, distill, evaluate, platt_loss
from rcig_eqx._backend import compiler_options
from rcig_eqx._describe import versions
from rcig_eqx._pool import PoolSchedule, new_member, train_member
from rcig_eqx.evaluation import Evaluation
from rcig_eqx.initializers import real_coreset
from rcig_eqx.methods import frepo, linearize


def setting(images_per_class: int, batch_size: int, *, width: int = 32, pool_steps: int = 0):
    """A network, a real-image coreset, an outer batch and its targets, on Fashion-MNIST.

    With `pool_steps` the network has been trained on the coreset for as many steps, as a member
    of a pool is.
    """
    train = data.load("fashion_mnist_small", "train")
    preprocess = data.default_preprocess(train.images)
    coreset = real_coreset(train, images_per_class, preprocess, key=jr.key(0))
    make = convnet_for(train.image_shape, train.num_classes, width=width)
    model = pool_network(make, *coreset.support(), pool_steps)
    chosen = np.random.default_rng(2).choice(len(train), batch_size, replace=False)
    images = preprocess(train.images[chosen])
    targets = jax.nn.one_hot(train.labels[chosen], train.num_classes, dtype=jnp.float32)
    return model, coreset, images, targets


def pool_network(make_model, X_S, y_S, steps, *, seed=1):
    """A fresh network after so many steps of a pool's training on a set."""
    schedule = PoolSchedule()
    member = new_member(make_model, schedule, key=jr.key(seed))
    train = eqx.filter_jit(train_member)
    return train(member, X_S, y_S, jnp.asarray(steps), schedule).model


def distill_head_only(train, model, steps, *, batch_size=64, seed=0, **options):
    """A `DistillResult` of the head-only method with the paper's outer loss."""
    return distill(
        train,
        key=jr.key(seed),
        method=frepo(outer_loss=platt_loss),
        model=model,
        steps=steps,
        batch_size=batch_size,
        progress=False,
        **options,
    )


@dataclasses.dataclass
class Timing:
    """What one compiled function gave and took."""

    result: Any
    compile_seconds: float
    temporary_megabytes: float
    seconds: list[float]

    def row(self) -> dict[str, Any]:
        """The same as plain values: seconds are the median."""
        low, median, high = statistics.quantiles(self.seconds, n=4)
        return {
            "seconds": round(median, 6),
            "quartiles": [round(low, 6), round(high, 6)],
            "megabytes": round(self.temporary_megabytes, 3),
            "repeats": len(self.seconds),
        }

    def __str__(self) -> str:
        low, median, high = statistics.quantiles(self.seconds, n=4)
        return f"{median:9.3f}{f'{low:.3f}–{high:.3f}':>16}{self.temporary_megabytes:9.0f}"


def compile_and_time(
    functions: dict[str, tuple[Callable, tuple]],
    *,
    repeats: int = 7,
    default_schedule: bool = False,
) -> dict[str, Timing]:
    """Compile functions, then time them in turn, round after round.

    Taking turns, they share whatever else the machine does in the meantime.
    """
    options = {} if default_schedule else compiler_options()
    compiled, timings = {}, {}
    for name, (function, args) in functions.items():
        began = time.perf_counter()
        compiled[name] = jax.jit(function, compiler_options=options).lower(*args).compile()
        took = time.perf_counter() - began
        memory = compiled[name].memory_analysis()
        megabytes = memory.temp_size_in_bytes / 1e6 if memory else float("nan")
        result = jax.block_until_ready(compiled[name](*args))
        timings[name] = Timing(result, took, megabytes, [])
    for _ in range(repeats):
        for name, (_, args) in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(compiled[name](*args))
            timings[name].seconds.append(time.perf_counter() - began)
    return timings


def hypergradient_of(method):
    """A method's hypergradient as a function of network, set, images and targets alone."""
    return functools.partial(method.hypergradient, key=jr.key(0))


@jax.jit
def adjoint(alpha, model, coreset, images, targets):
    """J w, the right-hand side of β in `Rcig`, at any α."""
    at_S, at_T = linearize(model, coreset.support()[0]), linearize(model, images)
    f_T = at_T.jvp(at_S.vjp(alpha))
    g = jax.grad(lambda f: platt_loss(f, targets, coreset.log_temperature))(f_T)
    return at_S.jvp(at_T.vjp(g))


@jax.jit
def image_gradient(alpha, beta, model, coreset, images, targets):
    """The hypergradient in the images (mirrored ones apart), at any α and β."""
    X_S = coreset.support()[0]
    at_S, at_T = linearize(model, X_S), linearize(model, images)
    theta = at_S.vjp(alpha)
    g = jax.grad(lambda f: platt_loss(f, targets, coreset.log_temperature))(at_T.jvp(theta))
    mu = jax.tree.map(jnp.subtract, at_T.vjp(g), at_S.vjp(beta))

    def bilinear(X):
        at = linearize(model, X)
        return jnp.sum(alpha * at.jvp(mu)) - jnp.sum(beta * at.jvp(theta))

    return jax.grad(bilinear)(X_S)


def fresh_accuracies(coreset, test, *, width: int, networks: int, seed: int) -> Evaluation:
    """Fresh ReLU networks trained on a set by the paper's protocol, all test images."""
    return evaluate(
        coreset,
        test,
        key=jr.key(seed),
        model=convnet_for(test.image_shape, test.num_classes, width=width, softplus=None),
        num_networks=networks,
        progress=False,
    )


def cosine(a: jax.Array, b: jax.Array) -> float:
    """Cosine of the angle between two arrays, as vectors."""
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def measured_here(**more_versions: str) -> dict[str, Any]:
    """What every raw result says of itself: command, machine, versions and month."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command, out = (
        ["python", f"benchmarks/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]],
        "--out",
    )
    if out in command:
        at = command.index(out)
        del command[at : at + 2]
    return {
        "command": shlex.join(command),
        "machine": f"{device.platform} ({processor() or device.device_kind}), "
        f"{platform.machine()}, {cores} cores",
        "versions": versions() | more_versions,
        "measured": f"{datetime.date.today():%Y-%m}",
    }


def processor() -> str:
    """The model of the processor, where Linux tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def append_lines(path: str | None, rows: list[dict[str, Any]], **more_versions: str) -> None:
    """Append raw results to a file of JSON lines; nothing without a path."""
    if path is None:
        return
    here = measured_here(**more_versions)
    with open(path, "a") as file:
        for row in rows:
            file.write(json.dumps(here | row, ensure_ascii=False) + "\n")


def print_header(title: str) -> None:
    """The title, and the device and versions the numbers hold for."""
    device = jax.devices()[0]
    print(f"# {title}")
    print(f"{device.platform} ({device.device_kind}), {platform.machine()}, {versions()}\n")
