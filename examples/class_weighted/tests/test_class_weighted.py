"""The losses are what they say, their hypergradient is right, and a weight has its effect."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from class_weighted import WeightedCrossEntropy, cross_entropy, distill_weighted, measure, one_class
from rcig_eqx import Coreset, data, methods, platt_loss
from rcig_eqx.models import ConvNet
from rcig_eqx.solvers import Adam, ConjugateGradient


def test_equal_weights_are_the_usual_loss_and_a_weight_is_a_repetition():
    keys = jr.split(jr.key(0))
    predictions, temperature = jr.normal(keys[0], (4, 3)), jnp.asarray(0.2)
    targets = jax.nn.one_hot(jnp.asarray([0, 1, 2, 1]), 3)
    equal = WeightedCrossEntropy(jnp.ones(3))(predictions, targets, temperature)
    np.testing.assert_allclose(equal, platt_loss(predictions, targets, temperature), rtol=1e-6)
    twice = jnp.asarray([0, 1, 2, 3, 1, 3])
    np.testing.assert_allclose(
        WeightedCrossEntropy(jnp.asarray([1.0, 2.0, 1.0]))(predictions, targets, temperature),
        platt_loss(predictions[twice], targets[twice], temperature),
        rtol=1e-6,
    )


def test_the_hypergradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        keys = jr.split(jr.key(0), 4)
        model = ConvNet(
            in_channels=1,
            image_size=4,
            num_classes=3,
            width=1,
            depth=1,
            softplus=3.0,
            dtype=jnp.float64,
            key=keys[0],
        )
        labels = jnp.eye(3) - 1 / 3
        images, batch = jr.normal(keys[1], (3, 4, 4, 1)), jr.normal(keys[2], (6, 4, 4, 1))
        targets = jax.nn.one_hot(jnp.arange(6) % 3, 3, dtype=jnp.float64)
        method = methods.cig(
            l2_rate=0.1,
            inner_loss=cross_entropy,
            outer_loss=WeightedCrossEntropy(jnp.asarray([1.0, 1.0, 5.0])),
            # Enough for the minimum to 1e-9: many times as many, and Adam leaves it again.
            inner=Adam(learning_rate=1e-3, steps=5_000),
            solver=ConjugateGradient(1e-10, 500),
        )
        direction = jr.normal(keys[3], images.shape)

        @eqx.filter_jit
        def value_and_slope(change: jax.Array) -> tuple[jax.Array, jax.Array]:
            coreset = Coreset(images + change * direction, labels, jnp.zeros(()))
            found = method.hypergradient(model, coreset, batch, targets, key=keys[3])
            return found.value, jnp.vdot(found.gradient.images, direction)

        (above, _), (below, _), (_, slope) = map(value_and_slope, jnp.asarray([1e-3, -1e-3, 0.0]))
        np.testing.assert_allclose(slope, (above - below) / 2e-3, rtol=1e-4)


def test_a_class_weighed_up_is_recognised_more_often():
    train, held_out = (data.load("fashion_mnist_small", split) for split in ("train", "test"))
    recalls: list[float] = []
    for weight in (1.0, 10.0):
        result = distill_weighted(
            train,
            one_class(train, "Shirt", weight),
            key=jr.key(0),
            steps=8,
            width=2,
            depth=1,
            progress=False,
        )
        report = measure(result, held_out, key=jr.key(1), networks=2, steps=100, progress=False)
        recalls.append(float(report.per_class[:, 6].mean()))
    assert recalls[1] > recalls[0] + 0.1


def test_bad_input_is_refused_in_words():
    train = data.load("fashion_mnist_small")
    with pytest.raises(ValueError, match=r"no class 'Skirt': choose among T-shirt/top"):
        one_class(train, "Skirt", 2.0)
    with pytest.raises(ValueError, match="make them positive"):
        WeightedCrossEntropy(one_class(train, "Shirt", 0.0))
