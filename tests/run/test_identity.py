"""What tells strategies apart: what they carry, and their source."""

import functools
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from rcig_eqx import convnet_for, coreset_optimizer, ema, growing_average, platt_loss
from rcig_eqx._losses import SquaredError
from rcig_eqx.methods import frepo, rcig, rcig_paper
from rcig_eqx.run._identity import identity_of
from rcig_eqx.solvers import ConjugateGradient


def scaled(x, by=1.0):
    return x * by


def closed(by: Any, bias=0):
    return lambda x: x * by + bias


def plain(predictions, targets, log_temperature):
    return jnp.mean((predictions - targets) ** 2)


def weighted(by: float):
    def loss(predictions, targets, log_temperature):
        return by * plain(predictions, targets, log_temperature)

    return loss


def twice(function):
    return lambda x: function(function(x))


RATE = 0.5


def by_the_module(x):
    return x * RATE


class Scaled(eqx.Module):
    by: Any

    def __call__(self, x):
        return self.by * x


class Counted:
    """Free to change while it is used."""

    def __init__(self, by: float):
        self.by = by

    def __call__(self, x):
        return self.by * x


def recursive(n: int):
    def call(x):
        return call(x / n) if x > n else x

    return call


def looks(a: Any, b: Any) -> str:
    """What differs between two strategies, each made anew."""
    a, b = identity_of(a), identity_of(b)
    return " ".join(name for name in ("values", "code") if a[name] != b[name])


MADE: dict[str, Any] = {
    "number": lambda by: closed(by),
    "array": lambda by: closed(jnp.full(3, by)),
    "bfloat16": lambda by: closed(jnp.full(3, by, jnp.bfloat16)),
    "key": lambda by: closed(jr.key(by)),
    "old key": lambda by: closed(jax.random.PRNGKey(by)),
    "numpy": lambda by: closed(np.arange(3.0) * by),
    "within a function": lambda by: twice(closed(by)),
    "within a list": lambda by: closed([by, {"a": (by,)}]),
    "within a set": lambda by: closed({"b", "a", f"{by}"}),
    "partial": lambda by: functools.partial(scaled, by=by),
    "tree partial": lambda by: jax.tree_util.Partial(scaled, by=by),
    "module": lambda by: Scaled(by),
    "bound": lambda by: Scaled(by).__call__,
    "jitted": lambda by: jax.jit(closed(by)),
    "filter jitted": lambda by: eqx.filter_jit(closed(by)),
    "custom rule": lambda by: jax.custom_jvp(closed(by)),
    "cached": lambda by: functools.cache(closed(by)),
    "recursive": lambda by: recursive(by),
    "adam": lambda by: optax.adam(by / 100),
    "schedule": lambda by: optax.adam(optax.cosine_decay_schedule(0.1, by * 10)),
    "joined": lambda by: optax.sgd(
        optax.join_schedules([optax.constant_schedule(0.1), optax.constant_schedule(by)], [5])
    ),
    "chain": lambda by: optax.chain(optax.clip(1.0), optax.sgd(by / 100, momentum=0.9)),
    "injected": lambda by: optax.inject_hyperparams(optax.adam)(learning_rate=by / 100),
    "masked": lambda by: optax.partition({"a": optax.adam(by / 10), "b": optax.sgd(0.1)}, "a"),
    "ours": lambda by: coreset_optimizer(by / 100),
    "average": lambda by: ema(by / 10),
    "growing": lambda by: growing_average(float(by)),
    "network": lambda by: convnet_for((8, 8, 1), 3, width=by),
    "method": lambda by: rcig(solver=ConjugateGradient(by / 100)),
    "paper": lambda by: rcig_paper(l2_rate=by / 100),
    "loss": lambda by: frepo(outer_loss=weighted(by)),
}


@pytest.mark.parametrize("name", MADE)
def test_what_a_strategy_carries_tells_it_apart(name):
    make = MADE[name]
    assert looks(make(2), make(2)) == ""
    assert looks(make(2), make(3)).startswith("values")


CODE: dict[str, tuple[Any, Any, str]] = {
    "another number": (lambda x: 1 / (x + 1.0), lambda x: 1 / (x + 2.0), "code"),
    "one line": ((lambda x: x), (lambda x: x), ""),
    "two in a line": ((lambda x: x), (lambda x: -x), "code"),
    "another function": (scaled, twice, "values code"),
    "a library's": (optax.l2_loss, optax.huber_loss, "values code"),
    "a class": (SquaredError(), Scaled(1), "values code"),
    "an object free to change": (Counted(1.0), Counted(2.0), "code"),
    "a loss": (platt_loss, platt_loss, ""),
    "built in": (jnp.sin, jnp.cos, "code"),
}


@pytest.mark.parametrize("name", CODE)
def test_source_is_told_from_values(name):
    a, b, differs = CODE[name]
    assert looks(a, b) == differs


def test_a_constant_of_the_module_counts_as_source(monkeypatch):
    before = identity_of(by_the_module)
    monkeypatch.setitem(globals(), "RATE", 0.25)
    after = identity_of(by_the_module)
    assert before["values"] == after["values"]
    assert before["code"] != after["code"]


def test_layout_and_remarks_are_no_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plain_a.py").write_text("def loss(x):\n    return x + 1\n")
    (tmp_path / "plain_b.py").write_text("\n# Moved.\ndef loss(x):  # a remark\n  return (x+1)\n")
    import plain_a  # pyright: ignore[reportMissingImports]
    import plain_b  # pyright: ignore[reportMissingImports]

    assert looks(plain_a.loss, plain_b.loss) == ""


def test_only_the_users_own_functions_are_named():
    assert identity_of(frepo(outer_loss=platt_loss))["names"] == []
    assert identity_of(frepo(outer_loss=plain))["names"] == ["plain"]


def test_the_same_in_every_process_and_without_a_source():
    program = (
        "import optax, jax.numpy as jnp\n"
        "from rcig_eqx import coreset_optimizer\n"
        "from rcig_eqx.run._identity import identity_of\n"
        "def loss(x, by={'a', 'b', 'c'}): return x * 2\n"
        "rate = optax.cosine_decay_schedule(0.1, 10)\n"
        "print(identity_of((loss, optax.adamw(rate), coreset_optimizer(rate))))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(said) == 1
