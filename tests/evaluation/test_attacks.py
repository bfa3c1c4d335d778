"""Attacks: closed forms on linear networks, bounds on ours, and accuracies under them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import convnet_for, data
from rcig_eqx.data import standardize, zca
from rcig_eqx.evaluation._attacks import EPSILON, STEP, Preprocessed, Robustness, fgsm, pgd

CLASSES, SHAPE = 3, (8, 8, 1)


class Linear(eqx.Module):
    """Logits W x + b of the pixels."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, pixels):
        return pixels.reshape(len(pixels), -1) @ self.weight.T + self.bias


LINEAR = Linear(jr.normal(jr.key(0), (CLASSES, 64)), jr.normal(jr.key(1), (CLASSES,)))
PIXELS = jr.uniform(jr.key(2), (20, *SHAPE))
LABELS = jr.randint(jr.key(3), (20,), 0, CLASSES)


def cross_entropies(classify, pixels) -> np.ndarray:
    logits = np.asarray(classify(pixels), np.float64)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), np.asarray(LABELS)]


def test_fgsm_of_a_linear_network_is_its_closed_form():
    """The gradient of the cross-entropy is Wᵀ (softmax(W x + b) − one-hot)."""
    weight, logits = np.asarray(LINEAR.weight), np.asarray(LINEAR(PIXELS), np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = (softmax - np.eye(CLASSES)[np.asarray(LABELS)]) @ weight
    expected = np.clip(np.asarray(PIXELS) + 0.1 * np.sign(slope).reshape(PIXELS.shape), 0, 1)
    found = fgsm(LINEAR, PIXELS, LABELS, epsilon=0.1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pgd_of_two_classes_ends_in_the_worst_corner():
    """The loss of a linear network of two classes rises along one direction alone."""
    network = Linear(LINEAR.weight[:2], LINEAR.bias[:2])
    labels = LABELS % 2
    towards = np.where(np.asarray(labels)[:, None], 1, -1) * np.asarray(
        network.weight[0] - network.weight[1]
    )
    corner = np.clip(np.asarray(PIXELS) + EPSILON * np.sign(towards).reshape(PIXELS.shape), 0, 1)
    found = pgd(network, PIXELS, labels, key=jr.key(0))
    np.testing.assert_allclose(found, corner, atol=1e-6)


def trained_like(channels: int, fit) -> Preprocessed:
    """A network of random weights, through a preprocessing."""
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, channels)).astype(np.uint8)
    network = convnet_for((8, 8, channels), CLASSES, width=8, depth=1, softplus=None)(jr.key(4))
    return Preprocessed(network, fit(images))


@pytest.mark.parametrize(("channels", "fit"), [(1, standardize), (3, zca)])
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_stay_within_their_bounds_and_raise_the_loss(attack, channels, fit):
    classify = trained_like(channels, fit)
    pixels = jr.uniform(jr.key(5), (20, 8, 8, channels)).round(1)  # some at 0 and at 1
    more = {"key": jr.key(6)} if attack is pgd else {}
    attacked = attack(classify, pixels, LABELS, **more)
    assert np.abs(attacked - pixels).max() <= EPSILON + 1e-7
    assert np.abs(attacked - pixels).max() > EPSILON - 1e-6
    assert attacked.min() == 0
    assert attacked.max() == 1
    assert attacked.dtype == pixels.dtype
    assert (cross_entropies(classify, attacked) > cross_entropies(classify, pixels)).mean() > 0.9


def test_pgd_is_at_least_as_strong_as_fgsm_on_average():
    classify = trained_like(1, standardize)
    one = cross_entropies(classify, fgsm(classify, PIXELS, LABELS)).mean()
    many = cross_entropies(classify, pgd(classify, PIXELS, LABELS, key=jr.key(7))).mean()
    assert many >= one > cross_entropies(classify, PIXELS).mean()


def test_pgd_starts_at_random_and_takes_its_steps():
    starts = [pgd(LINEAR, PIXELS, LABELS, key=jr.key(k), steps=0) for k in (0, 0, 1)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert np.abs(starts[0] - starts[2]).max() > EPSILON / 2
    assert np.abs(starts[0] - PIXELS).max() <= EPSILON + 1e-7
    one = pgd(LINEAR, PIXELS, LABELS, key=jr.key(0), steps=1)
    assert np.abs(one - starts[0]).max() == pytest.approx(STEP, abs=1e-6)


def test_robustness_is_the_accuracy_of_each_attack():
    train = data.Dataset.from_arrays(np.asarray(PIXELS), np.asarray(LABELS))
    preprocess = standardize(train.images)
    network = convnet_for(SHAPE, CLASSES, width=4, depth=1, softplus=None)(jr.key(4))
    classify = Preprocessed(network, preprocess)
    labels = jnp.argmax(classify(PIXELS), -1)  # what it gets right
    found = Robustness(preprocess, PIXELS, labels)(network, key=jr.key(0))
    assert found["clean"] == 1
    hits = jnp.argmax(classify(fgsm(classify, PIXELS, labels)), -1) == labels
    assert found["fgsm"] == pytest.approx(float(hits.mean()))
    assert 0 <= found["pgd"] <= found["fgsm"] < 1


def test_a_network_that_diverged_is_never_right():
    network = convnet_for(SHAPE, CLASSES, width=4, depth=1, softplus=None)(jr.key(4))
    lost = jax.tree.map(lambda x: x * jnp.nan if eqx.is_inexact_array(x) else x, network)
    found = Robustness(standardize(np.asarray(PIXELS)), PIXELS, LABELS)(lost, key=jr.key(0))
    assert {name: float(x) for name, x in found.items()} == {"clean": 0, "fgsm": 0, "pgd": 0}
