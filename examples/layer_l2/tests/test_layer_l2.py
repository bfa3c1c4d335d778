"""The hypergradient is the slope of the validation loss, and descending it works."""

from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from layer_l2 import Examples, descend, examples, fit, grid, inner_loss, validation_loss
from layer_l2.problem import Layers, predictions
from layer_l2.search import cube, loss_and_gradient
from rcig_eqx import data
from rcig_eqx.methods import linearize
from rcig_eqx.models import ConvNet
from rcig_eqx.solvers import Dual

IMAGES_PER_CLASS = 2


@pytest.fixture(scope="module", autouse=True)
def _x64() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def network() -> ConvNet:
    return ConvNet(
        in_channels=1,
        image_size=28,
        num_classes=10,
        width=2,
        depth=2,
        dtype=jnp.float64,
        key=jr.key(0),
    )


@pytest.fixture(scope="module")
def sets() -> tuple[data.Dataset, data.Dataset]:
    real = data.load("fashion_mnist_small")
    chosen = real.per_class(2 * IMAGES_PER_CLASS, np.random.default_rng(0)).reshape(10, -1)
    train, validation = np.split(chosen, 2, axis=1)
    return real.subset(train.ravel()), real.subset(validation.ravel())


@pytest.fixture(scope="module")
def problem(network: ConvNet, sets: tuple[data.Dataset, data.Dataset]) -> tuple[Examples, Examples]:
    preprocess = data.standardize(sets[0].images)
    return examples(network, sets[0], preprocess), examples(network, sets[1], preprocess)


def test_the_rows_are_those_of_the_linearised_network(
    network: ConvNet,
    sets: tuple[data.Dataset, data.Dataset],
    problem: tuple[Examples, Examples],
):
    images = jnp.asarray(data.standardize(sets[0].images)(sets[0].images), jnp.float64)
    expected = linearize(network, images).jvp(network).ravel()
    theta = tuple(ravel_pytree(layer)[0] for layer in (*network.blocks, network.head))
    rows = predictions(theta, problem[0])
    np.testing.assert_allclose(rows, expected, rtol=1e-10, atol=1e-10)


def test_fit_is_the_minimum(problem: tuple[Examples, Examples]):
    log_l2 = jnp.asarray([-1.0, 0.5, 0.0])
    theta = fit(log_l2, problem[0])
    gradients = cast(Layers, jax.grad(inner_loss)(theta, log_l2, *problem))
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-10)


def test_the_hypergradient_is_that_of_finite_differences(problem: tuple[Examples, Examples]):
    log_l2, h = jnp.asarray([-1.0, 0.5, 0.0]), 1e-4

    def loss(log_l2: jax.Array) -> jax.Array:
        return validation_loss(fit(log_l2, problem[0]), log_l2, *problem)

    slopes = [(loss(log_l2 + h * e) - loss(log_l2 - h * e)) / (2 * h) for e in jnp.eye(3)]
    found = loss_and_gradient(log_l2, *problem, Dual())
    assert bool(found.stats["converged"])
    np.testing.assert_allclose(found.gradient, jnp.stack(slopes), rtol=1e-6)


def test_descent_finds_lower_losses_than_one_weight_for_all(problem: tuple[Examples, Examples]):
    found = descend(jnp.zeros(3), *problem, steps=10, progress=False)
    shared = [jnp.full(3, value) for value in (-3.0, -2.0, -1.0, 0.0, 1.0)]
    tried = grid(shared, *problem, progress=False)
    assert found.loss < tried.loss < found.losses[0]
    assert tried.loss == min(tried.losses)
    assert (found.solves, tried.solves) == (20, 5)


def test_a_cube_has_all_combinations():
    points = {tuple(map(float, point)) for point in cube([0.0, 1.0], 3)}
    assert len(points) == 8


def test_bad_input_is_refused_in_words(problem: tuple[Examples, Examples]):
    with pytest.raises(ValueError, match="at least one"):
        descend(jnp.zeros(3), *problem, steps=0)
    with pytest.raises(ValueError, match="points is empty"):
        grid([], *problem)
