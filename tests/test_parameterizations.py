"""What is stored of a distilled set: bits, derivatives, and the way to arrays and back."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import rcig_eqx
from _stored import CLASSES, SHAPE, TABLE, N, a_start
from rcig_eqx import Coreset, Recipe, coreset_optimizer, load_result
from rcig_eqx._coreset import fold_temperature
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.data import load
from rcig_eqx.methods import AbstractMethod
from rcig_eqx.models import convnet_for
from rcig_eqx.parameterizations import (
    PARAMETERIZATIONS,
    AbstractParameterization,
    Cosine,
    Downsampled,
    LabelBits,
    Quantized,
    SharedBasis,
    compact,
    compose,
    plain,
)
from rcig_eqx.parameterizations._levels import packed
from rcig_eqx.parameterizations._read import cosine, decode as read, integers, linear


@pytest.fixture(scope="module")
def start() -> Coreset:
    return a_start()


def moved(psi: Any, seed: int = 2, size: float = 0.05) -> Any:
    """ψ away from where it starts, as after some steps."""
    leaves, structure = jax.tree.flatten(psi)
    keys = jr.split(jr.key(seed), len(leaves))
    return structure.unflatten(
        [x + size * jr.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    )


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )


@pytest.mark.parametrize("name", TABLE)
def test_what_is_packed_is_the_same_set_bit_for_bit(name, start):
    made = TABLE[name]
    psi = moved(made.encode(start))
    like = eqx.filter_eval_shape(made.encode, start)
    again = made.unpack(made.pack(psi), like)
    assert jax.tree.structure(again) == jax.tree.structure(psi)
    assert same(made.decode(again), made.decode(psi))
    images, labels = read(made.pack(psi), made.layout(psi))
    decoded = made.decode(psi)
    np.testing.assert_allclose(images, decoded.images, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(labels, decoded.labels, rtol=1e-5, atol=1e-6)
    assert (images.dtype, labels.dtype) == (np.float32, np.float32)
    assert decoded.images.shape == start.images.shape


@pytest.mark.parametrize("name", TABLE)
def test_bits_are_those_of_the_arrays_within_padding(name, start):
    made = TABLE[name]
    psi = made.encode(start)
    arrays = made.pack(psi)
    size = 8 * sum(a.nbytes for k, a in arrays.items() if k != "log_temperature")
    whole = sum(a.dtype == np.uint8 for a in arrays.values())
    bits = made.bits(psi)
    assert size - 7 * whole <= bits <= size
    assert made.bits(eqx.filter_eval_shape(made.encode, start)) == bits
    assert jax.jit(made.decode)(psi).images.shape == start.images.shape


def test_bits_by_hand(start):
    assert plain().bits(start) == 32 * (start.images.size + start.labels.size)
    small, ranges = 4 * 5 * 3, 2 * (3 + 1)
    assert compact().bits(compact().encode(start)) == 8 * N * (small + CLASSES) + 32 * ranges
    largest = LabelBits(4, top_k=2)
    bits = 32 * start.images.size + N * 2 * (4 + 3) + 2 * 32
    assert largest.bits(largest.encode(start)) == bits
    basis = compose(SharedBasis(3, bits=5), Quantized(2, per="set"), LabelBits(1))
    bits = 5 * 3 * math.prod(SHAPE) + 2 * N * 3 + N * CLASSES + 3 * 2 * 32
    assert basis.bits(basis.encode(start)) == bits


def test_a_parameterization_of_ones_own_has_bits_and_arrays(start):
    class Own(AbstractParameterization):
        def encode(self, coreset):
            return {"set": [coreset.images, coreset.labels], "log_temperature": jnp.zeros(())}

        def decode(self, psi):
            images, labels = psi["set"]
            return Coreset(images, labels, psi["log_temperature"])

    own = Own()
    psi = own.encode(start)
    arrays = own.pack(psi)
    assert arrays.keys() == {"set.0", "set.1", "log_temperature"}
    assert own.bits(psi) == plain().bits(start)
    assert own.layout(psi) is None
    assert same(own.unpack(arrays, psi), psi)


@pytest.mark.parametrize("bits", [*range(1, 9), 17])
def test_integers_of_every_width_come_back(bits):
    whole = np.random.default_rng(bits).integers(0, 2**bits, (5, 7), dtype=np.uint32)
    whole[0, :2] = 0, 2**bits - 1
    stored = packed(whole, bits)
    assert stored.nbytes == math.ceil(35 * bits / 8)
    assert np.array_equal(integers(stored, bits, (5, 7)), whole)


def test_the_small_matrices_are_what_they_are_called():
    for size, stored in ((7, 4), (28, 14), (5, 5), (9, 2)):
        image = np.asarray(jr.normal(jr.key(size), (stored, 1)))
        expected = jax.image.resize(image, (size, 1), "linear")
        np.testing.assert_allclose(linear(size, stored) @ image, expected, atol=1e-6)
    basis = cosine(9, 9)
    np.testing.assert_allclose(basis.T @ basis, np.eye(9), atol=1e-6)
    wave = np.cos(np.pi * (np.arange(9) + 0.5) * 2 / 9)
    np.testing.assert_allclose(basis.T @ wave, np.sqrt(4.5) * np.eye(9)[2], atol=1e-6)


# Derivatives, in float64


def unrounded(x, span, u_error):
    """Levels with the error of their rounding held fixed, in NumPy."""
    low, width = span[0], span[1]
    return low + width * (np.clip((x - low) / width, *u_error[1]) + u_error[0])


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_the_derivative_is_that_of_the_numbers_before_rounding(bits):
    """By finite differences of a function that adds the rounding's error as a constant."""
    with jax.enable_x64(True):
        top, made = 2**bits - 1, Quantized(bits, per="set")
        x = jr.normal(jr.key(0), (4, 5, 5, 1), jnp.float64)
        extra = made.forward(x)[1]
        extra = eqx.tree_at(lambda e: e.arrays["range"], extra, jnp.array([-1.0, 1.7]))
        span = np.asarray(extra.arrays["range"])
        weights = np.asarray(jr.normal(jr.key(1), x.shape, jnp.float64))
        edges = (-0.5 / top, 1 + 0.5 / top)
        u = np.clip((np.asarray(x) - span[0]) / span[1], *edges)
        assert (u != (np.asarray(x) - span[0]) / span[1]).any()
        error = np.clip(np.round(u * top), 0, top) / top - u

        def reference(x, span):
            return np.sum(weights * unrounded(x, span, (error, edges)))

        def value(x, extra):
            return jnp.sum(jnp.asarray(weights) * made.backward(x, extra))

        assert float(value(x, extra)) == pytest.approx(reference(np.asarray(x), span), rel=1e-12)
        by_x, by_extra = jax.grad(value, (0, 1))(x, extra)
        for at in ((0, 0, 0, 0), (1, 2, 3, 0), (3, 4, 4, 0), (2, 1, 0, 0)):
            step = np.zeros(x.shape)
            step[at] = 1e-6
            slope = reference(x + step, span) - reference(x - step, span)
            assert float(by_x[at]) == pytest.approx(slope / 2e-6, abs=1e-7)
        inside = (u > edges[0]) & (u < edges[1])
        np.testing.assert_allclose(by_x, np.where(inside, weights, 0))
        for i in range(2):
            step = np.eye(2)[i] * 1e-7
            slope = reference(np.asarray(x), span + step) - reference(np.asarray(x), span - step)
            assert float(by_extra.arrays["range"][i]) == pytest.approx(slope / 2e-7, rel=1e-5)


@pytest.mark.parametrize("made", [Downsampled(2), Cosine(0.4), SharedBasis(3, bits=None)])
def test_derivatives_without_rounding_are_those_of_finite_differences(made, start):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
        psi = made.encode(wide)
        toward = moved(jax.tree.map(jnp.zeros_like, psi), size=1.0)
        weights = moved(jax.tree.map(jnp.zeros_like, wide), seed=5, size=1.0)

        def value(psi):
            pairs = zip(jax.tree.leaves(made.decode(psi)), jax.tree.leaves(weights), strict=True)
            return sum(jnp.sum(jnp.sin(x) * w) for x, w in pairs)

        def along(size):
            return value(jax.tree.map(lambda x, d: x + size * d, psi, toward))

        parts = jax.tree.map(lambda g, d: jnp.sum(g * d), jax.grad(value)(psi), toward)
        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        assert float(sum(jax.tree.leaves(parts))) == pytest.approx(float(slope), rel=1e-7)


def test_labels_that_are_not_stored_still_learn(start):
    made = LabelBits(4, top_k=2)
    psi = made.encode(start)
    labels = made.decode(psi).labels
    assert all(len(np.unique(row)) <= 3 for row in np.asarray(labels))
    gradient = jax.grad(lambda p: jnp.sum(made.decode(p).labels * start.images[:, 0, :6, 0]))(psi)
    low, rest = np.asarray(psi.extras[0].arrays["range"])[0], np.asarray(labels).min(1)
    sums = np.asarray(labels).sum(1)
    np.testing.assert_allclose(sums[rest < low - 1e-6], 0, atol=1e-6)
    assert (rest <= low + 1e-6).all()
    assert (sums <= 1e-6).all()
    assert (np.abs(sums) < 1e-6).any()
    order = np.argsort(np.asarray(psi.labels), axis=1)
    stored = np.argsort(order, axis=1) >= CLASSES - 2
    expected = np.asarray(start.images[:, 0, :6, 0])
    np.testing.assert_allclose(np.asarray(gradient.labels)[~stored], expected[~stored])


# What cannot be


def test_what_cannot_be_stored_so_is_said(start):
    rows = Coreset(jnp.ones((4, 5)), jnp.eye(4), jnp.zeros(()))
    for make, says in (
        (lambda: Quantized(0), r"bits is 0: choose a whole number in 1\.\.8"),
        (lambda: LabelBits(9), "bits is 9"),
        (lambda: Quantized(4, per="pixel"), "per is 'pixel': choose one of set, channel, number"),
        (lambda: Downsampled(0.5), "factor is 0.5"),
        (lambda: Cosine(0), "keep is 0"),
        (lambda: SharedBasis(0), "rank is 0"),
        (lambda: LabelBits(8, top_k=0), "top_k is 0"),
        (lambda: compose(), "stages is empty"),
        (lambda: compose(Quantized(8), Downsampled(2)), "Downsampled: put what rounds last"),
        (lambda: compose(LabelBits(8), LabelBits(4)), "changes labels after"),
        (lambda: Downsampled(2).encode(rows), r"Downsampled, which is for images .*\[5\]"),
        (lambda: compose(SharedBasis(2), Cosine()).encode(start), "Cosine, which is for images"),
        (lambda: SharedBasis(5).encode(rows), r"rank is 5: choose it in 1\.\.4"),
        (lambda: LabelBits(8, top_k=7).encode(start), r"top_k is 7: choose it in 1\.\.6"),
    ):
        with pytest.raises(ValueError, match=says):
            make()


def test_rows_go_where_no_image_is_needed():
    rows = Coreset(jr.normal(jr.key(0), (8, 5)), jnp.tile(jnp.eye(2), (4, 1)), jnp.zeros(()))
    made = compose(SharedBasis(3), Quantized(4), LabelBits(8))
    psi = made.encode(rows)
    assert made.decode(psi).images.shape == (8, 5)
    images, labels = read(made.pack(psi), made.layout(psi))
    np.testing.assert_allclose(images, made.decode(psi).images, atol=1e-5)
    np.testing.assert_allclose(labels, rows.labels, atol=0.01)


def test_constant_numbers_are_kept():
    flat = Coreset(jnp.full((4, 2, 2, 1), 0.25), jnp.eye(4), jnp.zeros(()))
    psi = Quantized(8).encode(flat)
    decoded, transpose = jax.vjp(Quantized(8).decode, psi)
    np.testing.assert_allclose(decoded.images, flat.images, atol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(transpose(decoded)))


# In distill


@pytest.fixture(scope="module")
def train():
    return load("fashion_mnist_small", "train")


def distill(train, parameterization, **changed):
    given: dict[str, Any] = {
        "images_per_class": 1,
        "key": jr.key(0),
        "model": convnet_for((28, 28, 1), 10, width=8),
        "method": rcig_eqx.methods.frepo(outer_loss=rcig_eqx.platt_loss),
        "steps": 30,
        "batch_size": 64,
        "progress": False,
    }
    pool = rcig_eqx.PoolSchedule(size=2)
    given["recipe"] = Recipe(parameterization=parameterization, pool=pool)
    return rcig_eqx.distill(train, **(given | changed))


QUICK = ("shared_basis", "cosine", "compact")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in PARAMETERIZATIONS],
)
def test_a_run_improves_over_its_start(name, train, tmp_path):
    made = PARAMETERIZATIONS[name]()
    result = distill(train, made)
    losses = result.history["loss"]
    assert np.mean(losses[-8:]) < np.mean(losses[:3]) - 0.05
    assert result.coreset.images.shape == (10, 28, 28, 1)
    bits = made.bits(result.psi)
    assert result.recipe["bits"] == bits
    assert result.recipe["bits_per_class"] == math.ceil(bits / 10)
    assert f"{math.ceil(bits / 10):,} bits per class" in repr(result)
    assert (result.stored is not None) == (name != "plain")
    decoded = fold_temperature(made.decode(result.psi))
    np.testing.assert_allclose(result.coreset.images, decoded.images, rtol=1e-5, atol=3e-5)
    np.testing.assert_allclose(result.coreset.labels, decoded.labels, rtol=1e-4, atol=3e-5)
    path = result.save(tmp_path / "set", whole=False)
    loaded = load_result(path)
    for field in ("images", "labels", "log_temperature"):
        stored, returned = (np.asarray(getattr(r.coreset, field)) for r in (loaded, result))
        assert stored.tobytes() == returned.tobytes()
    assert 0 < path.stat().st_size - bits / 8 < 2048
    assert f"{math.ceil(bits / 10):,} bits per class" in repr(loaded)


class Known(AbstractMethod):
    """A hypergradient that is quick to compile and known: the cosine of every number."""

    def hypergradient(self, model, coreset, images, targets, *, key):
        return Hypergradient(jnp.zeros(()), jax.tree.map(jnp.cos, coreset), {})


def test_a_run_that_was_interrupted_ends_in_the_same_integers(train, tmp_path):
    given = {"method": Known(), "model": convnet_for((28, 28, 1), 10, width=2)}
    whole = distill(train, compact(), steps=3, **given)
    distill(train, compact(), steps=2, checkpoint_dir=tmp_path / "run", **given)
    rest = {"checkpoint_dir": tmp_path / "run", "resume": True}
    resumed = distill(train, compact(), steps=3, **rest, **given)
    assert whole.packed is not None
    assert resumed.packed is not None
    assert whole.packed.layout == resumed.packed.layout
    assert same(dict(resumed.packed.arrays), dict(whole.packed.arrays))


def test_the_temperature_has_its_rate_within_a_parameterization(start):
    optimizer = coreset_optimizer(0.01, 0.5)
    psi = compact().encode(start)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, psi), optimizer.init(psi), psi)
    ratio = jnp.abs(updates.log_temperature) / jnp.abs(updates.images).max()
    assert float(ratio) == pytest.approx(50, rel=0.01)
