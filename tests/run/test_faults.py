"""Steps that go wrong: rejected, explained, and gone on from."""

import dataclasses
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from _run import distill
from rcig_eqx import (
    PoolSchedule,
    Recipe,
    State,
    convnet_for,
    coreset_optimizer,
    growing_average,
    init,
    step,
)
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.data import Dataset, load, standardize
from rcig_eqx.initializers import real_coreset
from rcig_eqx.methods import AbstractMethod, cig, frepo, rcig_paper
from rcig_eqx.run._guard import CAUSES, L2_FACTOR, MAX_RAISES, SOLVE, explain
from rcig_eqx.run._loop import gave_up, interruptible, say_what_fell_short
from rcig_eqx.solvers import Adam, Neumann

make_model = convnet_for((14, 14, 1), 3, width=4, depth=1)
L2_RATE = 1e-3


class Probe(AbstractMethod):
    """Reports the λ it is given, and is broken in one place or none."""

    broken: str = eqx.field(static=True, default="")
    l2_rate: float = L2_RATE

    @property
    def head_l2_rate(self):
        return self.l2_rate

    def with_raised_l2(self, factor):
        return dataclasses.replace(self, l2_rate=self.l2_rate * factor)

    def hypergradient(self, model, coreset, images, targets, *, key):
        bad = {name: jnp.where(self.broken == name, jnp.nan, 1.0) for name in ("loss", "gradient")}
        residual = jnp.where(self.broken == "solve", jnp.nan, 0.0)
        value = jnp.asarray(self.l2_rate) * bad["loss"] * (1 + 0 * residual)
        return Hypergradient(
            value, jax.tree.map(lambda x: x * bad["gradient"], coreset), {"residual": residual}
        )


@pytest.fixture(scope="module")
def train():
    whole = load("fashion_mnist_small", "train")
    chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:20] for c in range(3)])
    return Dataset(whole.images[chosen, ::2, ::2], whole.labels[chosen], whole.class_names[:3])


@pytest.fixture(scope="module")
def batch(train):
    images = standardize(train.images)(train.images[::5])
    return images, jnp.asarray(train.labels[::5], jnp.int32)


def start(train, method, optimizer=None, size: int = 1) -> State:
    coreset = real_coreset(train, 2, standardize(train.images), key=jr.key(0))
    schedule = PoolSchedule(size=size, min_visit=0, max_visit=0)
    optimizer = optimizer or coreset_optimizer()
    recipe = Recipe(method, make_model, optimizer, schedule, growing_average())
    return init(coreset, recipe, key=jr.key(1))


take = eqx.filter_jit(step)


def spoilt(state: State) -> State:
    """The state with its pool's first convolution not a number."""
    where = lambda s: s.pool.model.blocks[0].kernel  # noqa: E731
    return eqx.tree_at(where, state, replace_fn=lambda x: x * jnp.nan)


def test_a_diverged_network_is_named_and_replaced(train, batch):
    state = spoilt(start(train, frepo()))
    after, metrics = take(state, batch)
    assert metrics["rejected"]
    assert "diverged" in CAUSES[int(metrics["cause"])]
    for now, before in zip(
        jax.tree.leaves((after.psi, after.opt_state)),
        jax.tree.leaves((state.psi, state.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(now, before)
    after, metrics = take(after, batch)
    assert not metrics["rejected"]
    assert metrics["cause"] == metrics["condition"] == 0
    assert np.isfinite(metrics["loss"])


def test_pixels_that_are_not_finite_are_named(train, batch):
    images, labels = batch
    _, metrics = take(start(train, frepo()), (images.at[0, 3, 3, 0].set(jnp.inf), labels))
    assert "outer batch" in CAUSES[int(metrics["cause"])]


@pytest.mark.parametrize(
    ("broken", "cause"),
    [("solve", "solve"), ("loss", "outer loss"), ("gradient", "gradient")],
)
def test_the_first_thing_to_break_is_named(broken, cause, train, batch):
    """With the condition number of the ridge head at that network, against NumPy's."""
    state = start(train, Probe(broken))
    _, metrics = take(state, batch)
    assert metrics["rejected"]
    assert cause in CAUSES[int(metrics["cause"])]
    model = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, state.pool.model)
    h = np.asarray(model.features(state.psi.images), np.float64)
    K = h @ h.T + L2_RATE * len(h) * np.eye(len(h))
    np.testing.assert_allclose(metrics["condition"], np.linalg.cond(K), rtol=1e-3)


def test_a_trained_head_has_no_ridge_system_to_name(train, batch):
    images, labels = batch
    method = cig(inner=Adam(1e-3, 2), solver=Adam(1e-3, 2))
    _, metrics = take(start(train, method), (images.at[0, 3, 3, 0].set(jnp.inf), labels))
    assert metrics["rejected"]
    assert "ridge head" not in explain(1, {name: float(value) for name, value in metrics.items()})


def test_an_update_that_overflows_is_rejected(train, batch):
    state = start(train, Probe(), optax.scale(jnp.inf))
    after, metrics = take(state, batch)
    assert "optimizer" in CAUSES[int(metrics["cause"])]
    np.testing.assert_array_equal(after.psi.images, state.psi.images)


def test_l2_is_raised_after_a_rejected_step_and_comes_back(train, batch):
    """The rule: ten times, up to the cap; an accepted step takes one raise back."""
    state, images, labels = start(train, Probe()), *batch
    bad = (images.at[0].set(jnp.nan), labels)

    class Spoilable(Probe):
        def hypergradient(self, model, coreset, images, targets, *, key):
            result = Probe.hypergradient(self, model, coreset, images, targets, key=key)
            return dataclasses.replace(result, value=result.value + 0 * jnp.sum(images))

    state = start(train, Spoilable())
    seen, good = [], []
    for spoil in [False] + (MAX_RAISES + 1) * [True] + (MAX_RAISES + 1) * [False]:
        state, metrics = take(state, bad if spoil else batch)
        seen.append(int(state.raises))
        if not spoil:
            good.append(float(metrics["loss"]) / L2_RATE)
    cap = MAX_RAISES
    assert seen == [0, *range(1, cap + 1), cap, *range(cap - 1, -1, -1), 0]
    np.testing.assert_allclose(good, [1, *(L2_FACTOR**i for i in range(cap, -1, -1))], rtol=1e-5)


def test_l2_as_it_is_where_nothing_was_rejected(train, batch):
    """The loss is that of the method alone."""
    state = start(train, frepo())
    model = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, state.pool.model)
    targets = jax.nn.one_hot(batch[1], 3)
    plain = eqx.filter_jit(frepo().hypergradient)(
        model, state.psi, batch[0], targets, key=jr.key(0)
    )
    _, metrics = take(state, batch)
    np.testing.assert_allclose(metrics["loss"], plain.value, rtol=1e-6)


def test_a_run_says_what_it_rejected_and_goes_on(train):
    class sometimes(AbstractMethod):
        """Not a number for an outer batch whose first image is of class 0."""

        def hypergradient(self, model, coreset, images, targets, *, key):
            bad = jnp.where(targets[0, 0] > 0, jnp.nan, 1e-3)
            return Hypergradient(bad, jax.tree.map(lambda x: x * bad, coreset), {})

    with pytest.warns(RuntimeWarning, match=r"rejected: step \d+, network 0: the outer"):
        result = distill(
            train,
            images_per_class=1,
            key=jr.key(0),
            method=sometimes(),
            model=make_model,
            pool=PoolSchedule(size=1, max_visit=1),
            steps=12,
            batch_size=4,
            progress=False,
        )
    assert not result.interrupted
    assert 0 < result.history["rejected"].sum() < 12
    assert np.isfinite(result.coreset.images).all()


def test_a_run_gives_up_by_the_steps_since_it_was_resumed_and_says_so():
    bad = [1.0] * 10
    assert gave_up({"rejected": bad})
    assert gave_up({"rejected": [0.0, *bad, 0.0]})  # metrics are read a step late
    assert not gave_up({"rejected": [*bad, 0.0, 0.0]})
    assert not gave_up({"rejected": [*bad, 1.0]}, 10)
    assert not gave_up({"rejected": bad}, 0, 9)  # as a process that has not read the last one
    others = dict.fromkeys(("loss", "cause", "network", "condition"), [0.0] * 11)
    with pytest.warns(RuntimeWarning, match="Stopped: 10 steps in a row"):
        say_what_fell_short({"rejected": [*bad, 0.0]} | others, frepo())


def test_a_run_given_up_for_its_solver_names_the_first_failure_and_no_larger_l2():
    """λ is raised after a rejected step, and a fixed Neumann step times it with it."""
    history = dict.fromkeys(("loss", "network", "condition"), [0.0] * 11)
    history |= {"rejected": [0.0] + [1.0] * 10, "cause": [0.0] + [CAUSES.index(SOLVE)] * 10}
    history |= {"converged": [1.0] + [0.0] * 10}
    history |= {"step_times_curvature": [1.5, 2.5, 21.0] + [2e4] * 8}
    method = rcig_paper(solver=Neumann(step_size=1e-3))
    with pytest.warns(RuntimeWarning) as caught:
        say_what_fell_short(history, method)
    given_up, solve = (str(warning.message) for warning in caught)
    assert "Stopped: 10 steps in a row" in given_up
    assert "l2_rate" not in given_up
    assert "that was 2.5 when it first failed" in solve


def test_a_signal_of_a_host_program_is_left_alone(monkeypatch):
    """Python knows no handler that it did not install, and could not put it back."""
    usual = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with interruptible() as interrupted:
        assert not interrupted()
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is usual


def test_an_optimizer_that_overflows_is_rejected(train, batch):
    """A second moment of infinity would make every later update zero."""

    class Huge(Probe):
        def hypergradient(self, model, coreset, images, targets, *, key):
            result = Probe.hypergradient(self, model, coreset, images, targets, key=key)
            return dataclasses.replace(
                result, gradient=jax.tree.map(lambda x: x + 1e30, result.gradient)
            )

    state = start(train, Huge())
    after, metrics = take(state, batch)
    assert metrics["rejected"]
    assert "update" in CAUSES[int(metrics["cause"])]
    for now, before in zip(
        jax.tree.leaves(after.opt_state), jax.tree.leaves(state.opt_state), strict=True
    ):
        np.testing.assert_array_equal(now, before)


def test_a_loss_in_double_precision(train, batch):
    """The explanation of a step has the dtype of its loss, whichever that is."""
    with jax.enable_x64(True):
        weights = jnp.asarray([1.0, 2.0, 3.0])

        def loss(predictions, targets, log_temperature):
            return jnp.sum((targets * weights[None] - predictions) ** 2)

        state = start(train, frepo(outer_loss=loss))
        _, metrics = take(state, batch)
    assert metrics["loss"].dtype == jnp.float64
    assert not metrics["rejected"]


class failing(AbstractMethod):
    """Fails on the device itself, where each step that it is told to is under way."""

    at: int = eqx.field(static=True, default=0)
    l2_rate: float = L2_RATE

    def hypergradient(self, model, coreset, images, targets, *, key):
        count = iter(range(1, 1000))

        def on_host(value):
            if next(count) == self.at:
                raise ArithmeticError("a fault of the device")
            return value

        zero = jnp.zeros(())
        value = jax.pure_callback(on_host, jax.ShapeDtypeStruct((), zero.dtype), zero)
        return Hypergradient(value, jax.tree.map(jnp.zeros_like, coreset), {"loss_again": value})


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_step_that_fails_on_the_device_ends_the_run_with_its_error(at, train, tmp_path):
    """At the first, in the middle, at the last, whose numbers are read once the loop is over."""
    settings = {"images_per_class": 1, "model": make_model, "steps": 6, "batch_size": 20}
    with pytest.raises(Exception, match="a fault of the device"):
        distill(
            train,
            key=jr.key(0),
            method=failing(at=at),
            checkpoint_dir=tmp_path,
            checkpoint_every=0.0,
            **settings,  # pyright: ignore[reportArgumentType]
        )
    kept = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert all(int(name[5:13]) < at for name in kept)
    assert bool(kept) == (at > 1)
