"""What a step takes, known before it is taken."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from _run import distill
from rcig_eqx import (
    Coreset,
    PoolSchedule,
    Recipe,
    convnet_for,
    coreset_optimizer,
    estimate_memory,
    growing_average,
    init,
)
from rcig_eqx._backend import library_workspace
from rcig_eqx.data import Dataset, load
from rcig_eqx.methods import frepo, rcig_paper
from rcig_eqx.models import conv2d
from rcig_eqx.solvers import Adam

BATCH = 16


def recipe(method, width: int = 4) -> Recipe:
    model = convnet_for((14, 14, 1), 3, width=width, depth=1)
    pool = PoolSchedule(size=3)
    return Recipe(method, model, coreset_optimizer(), pool, growing_average())


@pytest.fixture(scope="module")
def coreset():
    return Coreset(jnp.ones((6, 14, 14, 1)), jnp.eye(3)[jnp.arange(6) % 3], jnp.zeros(()))


def size_of(tree) -> int:
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    keys = [jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in arrays]
    return sum(x.nbytes for x in keys)


def test_state_and_batch_are_counted_to_the_byte(coreset):
    estimate = estimate_memory(recipe(frepo()), coreset, BATCH)
    state = init(coreset, recipe(frepo()), key=jr.key(0))
    assert estimate.batch == BATCH * (14 * 14 + 1) * 4
    assert estimate.state == size_of(state)
    assert estimate.temporaries > estimate.batch
    assert estimate.total == estimate.state + estimate.batch + estimate.temporaries
    assert "temporaries" in str(estimate)


def test_wider_takes_more(coreset):
    narrow, wide = (estimate_memory(recipe(frepo(), w), coreset, BATCH) for w in (4, 16))
    assert 2 < wide.state / narrow.state < 5
    assert wide.temporaries > narrow.temporaries


def test_what_products_make_on_the_side_is_counted():
    text = lambda f, *x: jax.jit(f).lower(*x).compile().as_text() or ""  # noqa: E731
    X, W = jnp.ones((4096, 64)), jnp.ones((64, 128))
    assert library_workspace(text(lambda x, w: jnp.exp(x @ w), X, W)) == 4096 * 128 * 4
    assert library_workspace(text(jnp.exp, X)) == 0


def test_what_convolutions_make_on_the_side_is_counted():
    """The padded operand of one, and of two in a row the first one's result as well."""
    text = lambda f, *x: jax.jit(f).lower(*x).compile().as_text() or ""  # noqa: E731
    x, w, v = jnp.ones((64, 16, 16, 32)), jnp.ones((3, 3, 32, 64)), jnp.ones((3, 3, 64, 32))
    one = lambda x, w: conv2d(x, w, padding=1)  # noqa: E731
    if "__ynn_fusion" not in text(one, x, w):
        pytest.skip("this jaxlib hands no convolution to a library, which would make arrays")
    padded, between = 64 * 18 * 18 * 32 * 4, 64 * 16 * 16 * 64 * 4
    assert library_workspace(text(one, x, w)) == padded
    two = library_workspace(text(lambda x, w, v: one(jnp.exp(one(x, w)), v), x, w, v))
    assert two in (between + 2 * padded, 2 * padded)  # as one call, or as two


def test_a_method_whose_rates_are_yet_to_be_found(coreset):
    method = rcig_paper(inner=Adam(steps=2), solver=Adam(steps=2))
    assert estimate_memory(recipe(method), coreset, BATCH).temporaries > 0


def test_too_little_memory_is_said_before_the_first_step(monkeypatch):
    whole = load("fashion_mnist_small", "train")
    train = Dataset(whole.images[:60, ::2, ::2], whole.labels[:60], whole.class_names)
    monkeypatch.setattr("rcig_eqx.run._memory.available_memory", lambda device: 1000)
    with pytest.warns(RuntimeWarning, match=r"0 MB are free.*batch_size below 8"):
        distill(
            train,
            images_per_class=1,
            key=jr.key(0),
            method=frepo(),
            model=convnet_for((14, 14, 1), 10, width=4, depth=1),
            pool=PoolSchedule(size=1),
            steps=1,
            batch_size=8,
            progress=False,
        )
