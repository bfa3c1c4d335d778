"""Backward passes through part of the distilled set, and large sets in chunks, in float64."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from _problem import exact_hypergradient, head_hypergradient, implicit_hypergradient, random_problem
from rcig_eqx import Coreset
from rcig_eqx._subsample import choose, in_chunks, partial_vjp
from rcig_eqx.methods import cig, frepo, linearize, rcig, rcig_paper, rig, vig
from rcig_eqx.solvers import Adam, ConjugateGradient

N = 5
ADAM = Adam(1e-2, 3)
PRIMAL = functools.partial(implicit_hypergradient, inner=ADAM, solver=ADAM)
FUNCTIONS = {
    "exact": functools.partial(exact_hypergradient, solver=lx.Cholesky()),
    "head": head_hypergradient,
    "rcig": PRIMAL,
    "rig": functools.partial(PRIMAL, linearized=False),
    "cig": functools.partial(PRIMAL, reparameterized=False),
    "vig": functools.partial(PRIMAL, linearized=False, reparameterized=False),
}


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def setting():
    with jax.enable_x64(True):
        return make(N)


def make(n):
    return random_problem(n, 4, 6, width=2, depth=1)


def close(got, expected, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))))


def temporary_bytes(function, *arguments) -> int:
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize(
    "name",
    [n if n not in ("rig", "cig") else pytest.param(n, marks=pytest.mark.slow) for n in FUNCTIONS],
)
def test_the_mean_over_every_subset_is_the_whole_gradient(setting, name):
    """Unbiased without a doubt: over all 10 pairs of 5 images, each as likely as the next."""
    function = FUNCTIONS[name]
    pairs = jnp.asarray(list(itertools.combinations(range(N), 2)))
    whole, parts = jax.jit(
        lambda *problem: (
            function(*problem).gradient,
            jax.vmap(lambda chosen: function(*problem, chosen=chosen).gradient)(pairs),
        )
    )(*setting)
    close(jax.tree.map(lambda x: jnp.mean(x, 0), parts), whole)
    untouched = np.asarray(jnp.any(parts.images != 0, axis=(2, 3, 4)))
    assert (untouched == [[i in pair for i in range(N)] for pair in pairs.tolist()]).all()
    close(parts.labels, jnp.broadcast_to(whole.labels, parts.labels.shape))


@pytest.mark.parametrize("make_method", [rcig, frepo, rcig_paper, rig, cig, vig])
def test_the_draw_of_a_method_is_unbiased(make_method):
    """4,000 keys: along 20 random directions the mean is within sampling error of the truth.

    Flipped, so that 2 images are drawn from 3 and their mirror images.
    """
    model, coreset, images, targets = make(3)
    flipped = Coreset(coreset.images, coreset.labels, coreset.log_temperature, flip=True)
    problem = model, flipped, images, targets
    adams: dict[str, Any] = {"inner": ADAM, "solver": ADAM}
    given = {} if make_method in (rcig, frepo) else adams
    keys = jr.split(jr.key(1), 4000)
    draws = jax.jit(jax.vmap(lambda k: choose(6, 2, k)))(keys)
    counts = np.bincount(np.asarray(draws).ravel(), minlength=6)
    assert np.abs(counts - 4000 / 3).max() < 4.5 * np.sqrt(4000 / 3 * 2 / 3)

    def in_images(method, key):
        return method.hypergradient(*problem, key=key).gradient.images.ravel()

    whole = jax.jit(functools.partial(in_images, make_method(**given)))(keys[0])
    # Methods differ only in what they make of a draw: one gradient a pair, not one a key.
    pairs, inverse = np.unique(np.sort(np.asarray(draws), 1), axis=0, return_inverse=True)
    assert len(pairs) == 15
    first = [int(np.flatnonzero(inverse == i)[0]) for i in range(15)]
    of_pairs = jax.vmap(functools.partial(in_images, make_method(**given, subset=2)))
    found = jax.jit(of_pairs)(keys[jnp.asarray(first)])
    directions = jr.normal(jr.key(2), (whole.size, 20))
    samples = np.asarray(found @ directions)[inverse]
    error = samples.mean(0) - np.asarray(whole @ directions)
    assert np.abs(error / (samples.std(0) / np.sqrt(len(keys)))).max() < 4.5
    assert samples.std(0).min() > 1e-3 * np.abs(whole @ directions).max()


@pytest.mark.parametrize(
    "name",
    [
        n if n not in ("rig", "cig", "vig") else pytest.param(n, marks=pytest.mark.slow)
        for n in FUNCTIONS
    ],
)
def test_chunks_change_nothing(setting, name, monkeypatch):
    """Flipped, so that 10 images go in chunks of 3, of which the last has one."""
    model, coreset, images, targets = setting
    flipped = Coreset(coreset.images, coreset.labels, coreset.log_temperature, flip=True)
    problem = model, flipped, images, targets
    function = FUNCTIONS[name]
    if name == "exact":
        function = functools.partial(exact_hypergradient, solver=ConjugateGradient(1e-12, 300))
    whole = jax.jit(lambda *p: function(*p))(*problem)
    monkeypatch.setattr("rcig_eqx._subsample.IMAGES_HELD", 3)
    monkeypatch.setattr("rcig_eqx._subsample.IMAGES_AT_ONCE", 2)
    monkeypatch.setattr("rcig_eqx.methods._rcig.IMAGES_AT_ONCE", 2)
    monkeypatch.setattr("rcig_eqx.methods._implicit.IMAGES_AT_ONCE", 2)
    chunked = jax.jit(lambda *p: function(*p))(*problem)
    close(chunked.gradient, whole.gradient, 1e-7)
    close(chunked.value, whole.value)


def test_partial_vjp_and_chunks_of_a_plain_function(monkeypatch):
    X, c = jr.normal(jr.key(0), (7, 2, 2, 1)), jr.normal(jr.key(1), (7, 3))
    A = jr.normal(jr.key(2), (4, 3))
    function = lambda x: jnp.sin(x.reshape(len(x), -1) @ A)  # noqa: E731
    y, transpose = jax.vjp(function, X)
    (whole,) = transpose(c)
    for held in (1, 7):
        got, to_images = partial_vjp(function, X, held=held)
        close(got, y)
        close(to_images(c), whole)
    _, to_images = partial_vjp(function, X, jnp.asarray([5, 2]))
    expected = jnp.zeros_like(X).at[jnp.asarray([5, 2])].set(3.5 * whole[jnp.asarray([5, 2])])
    close(to_images(c), expected)
    monkeypatch.setattr("rcig_eqx._subsample.IMAGES_HELD", 2)
    close(in_chunks(function, X), y)
    assert choose(7, None, key=jr.key(0)) is None
    assert choose(7, 7, key=jr.key(0)) is None


@pytest.mark.parametrize("name", ["exact", "rcig", "rig", "cig", "vig"])
def test_memory_is_constant_in_the_inner_and_inverse_hessian_steps(setting, name):
    def temporaries(steps):
        if name == "exact":
            given = {"solver": ConjugateGradient(1e-12, steps)}
        else:
            given = {"inner": Adam(1e-2, steps), "solver": Adam(1e-2, steps)}
        return temporary_bytes(functools.partial(FUNCTIONS[name], **given), *setting)

    assert temporaries(300) == temporaries(30)


def test_memory_of_a_linearization_is_that_of_a_chunk(monkeypatch):
    """A product with J Jᵀ of 128 images in chunks of 8, against the same in one piece."""
    model, coreset, _, _ = make(128)

    def temporaries():
        def product(model, images, labels):
            at = linearize(model, images)
            return jax.lax.fori_loop(0, 3, lambda _, u: at.jvp(at.vjp(u)), labels)

        return temporary_bytes(product, model, coreset.images, coreset.labels)

    whole = temporaries()
    monkeypatch.setattr("rcig_eqx._subsample.IMAGES_HELD", 8)
    assert temporaries() < 0.25 * whole


def test_a_subset_of_no_images_is_refused():
    with pytest.raises(ValueError, match="subset is 0"):
        rcig(subset=0)
    cg = ConjugateGradient()
    with pytest.raises(ValueError, match="subset is -1"):
        rcig_paper(inner=cg, solver=cg, subset=-1)
