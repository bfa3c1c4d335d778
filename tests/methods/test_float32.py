"""float32 on real images, at width 32: how close the library's routes come to the exact result."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from _problem import exact_hypergradient, implicit_hypergradient
from rcig_eqx import PoolSchedule, convnet_for, data
from rcig_eqx._pool import new_member, train_member
from rcig_eqx.initializers import real_coreset
from rcig_eqx.solvers import Adam, ConjugateGradient


def cosine(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return a @ b / np.sqrt((a @ a) * (b @ b))


def problem(images_per_class, pool_steps):
    """A network after `pool_steps` pool steps at the authors' rate, a coreset and a batch."""
    train = data.load("fashion_mnist_small", "train")
    preprocess = data.default_preprocess(train.images)
    coreset = real_coreset(train, images_per_class, preprocess, key=jr.key(0))
    schedule = PoolSchedule(learning_rate=5e-5)
    member = new_member(convnet_for(train.image_shape, 10, width=32), schedule, key=jr.key(1))
    X, y = coreset.support()
    member = eqx.filter_jit(train_member)(member, X, y, jnp.asarray(pool_steps), schedule)
    chosen = np.random.default_rng(2).choice(len(train), 64, replace=False)
    targets = jax.nn.one_hot(train.labels[chosen], 10)
    return member.model, coreset, preprocess(train.images[chosen]), targets


def hypergradient(problem, solver):
    return eqx.filter_jit(exact_hypergradient)(*problem, solver=solver)


def in_float64(problem):
    """The same by Cholesky, everything in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem)
        return jax.device_get(hypergradient(wide, lx.Cholesky()))


@pytest.mark.slow
@pytest.mark.parametrize("pool_steps", [0, 60])
def test_one_image_per_class(pool_steps):
    """Eight preconditioned products a solve, and the route the library picks."""
    case = problem(1, pool_steps)
    exact = in_float64(case)
    eight = hypergradient(case, ConjugateGradient(rtol=1e-12, max_steps=8))
    assert eight.stats["iterations"] == eight.stats["inner_iterations"] == 8
    picked = hypergradient(case, None)
    for result in (eight, picked):
        assert result.gradient.images.dtype == jnp.float32
        assert cosine(result.gradient.images, exact.gradient.images) >= 0.9999
        assert cosine(result.gradient.labels, exact.gradient.labels) >= 0.9999
        np.testing.assert_allclose(result.value, exact.value, rtol=1e-3)


@pytest.mark.slow
def test_the_primal_route():
    """By conjugate gradients to the exact one; near it by the paper's 20 and 20 Adam steps."""
    case = problem(1, 60)
    exact = hypergradient(case, lx.Cholesky()).gradient.images
    cg = ConjugateGradient(1e-5, 200)
    for inner, solver, least in ((cg, cg, 0.9999), (Adam(1e-3), Adam(1e-1), 0.98)):
        result = eqx.filter_jit(implicit_hypergradient)(*case, inner=inner, solver=solver)
        assert result.stats["converged"]
        assert result.gradient.images.dtype == jnp.float32
        assert cosine(result.gradient.images, exact) >= least


@pytest.mark.slow
@pytest.mark.parametrize("pool_steps", [0, 60])
def test_ten_images_per_class(pool_steps):
    case = problem(10, pool_steps)
    exact = in_float64(case)
    picked = hypergradient(case, None)
    assert cosine(picked.gradient.images, exact.gradient.images) >= 0.999
    assert cosine(picked.gradient.labels, exact.gradient.labels) >= 0.999
    np.testing.assert_allclose(picked.value, exact.value, rtol=1e-3)
