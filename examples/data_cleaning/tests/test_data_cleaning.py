"""The hypergradient in the weights is right, and following it finds wrong labels."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_cleaning import (
    Examples,
    Weighting,
    accuracy,
    auc,
    clean,
    corrupt,
    equal_weights,
    examples,
    fit,
    inner_loss,
    outer_loss,
    precision,
    tune,
)
from data_cleaning.problem import blank_classifier
from rcig_eqx import data, hypergradient
from rcig_eqx.solvers import ConjugateGradient

CLASSES = 10


def split(per_class: int) -> tuple[data.Dataset, data.Dataset]:
    """Two sets of real images that have none in common."""
    real = data.load("fashion_mnist_small")
    chosen = real.per_class(2 * per_class, np.random.default_rng(0)).reshape(CLASSES, -1)
    first, second = np.split(chosen, 2, axis=1)
    return real.subset(first.ravel()), real.subset(second.ravel())


def test_the_hypergradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        train, validation = (
            Examples(at.pixels[:, ::30].astype(jnp.float64), at.labels)
            for at in (examples(each, data.standardize(each.images)) for each in split(1))
        )
        start = blank_classifier(train, CLASSES)
        base = equal_weights(train, 0.1)
        logits = jnp.linspace(-1.0, 1.0, len(train.labels))
        refit = eqx.filter_jit(fit)

        def loss(change: float, example: int) -> float:
            psi = Weighting(logits.at[example].add(change), base.log_l2)
            return float(outer_loss(refit(start, psi, train), psi, train, validation))

        psi = Weighting(logits, base.log_l2)
        solver = ConjugateGradient(1e-12, 1000)
        theta = refit(start, psi, train)
        found = hypergradient(outer_loss, inner_loss, theta, psi, train, validation, solver=solver)
        for example in (0, 7):
            slope = (loss(1e-4, example) - loss(-1e-4, example)) / 2e-4
            np.testing.assert_allclose(found.gradient.logits[example], slope, rtol=1e-5)


def test_wrong_labels_end_lighter_and_the_outer_loss_falls():
    truth, judges = split(20)
    noisy, wrong = corrupt(truth, 0.4, np.random.default_rng(1))
    preprocess = data.standardize(truth.images)
    train, validation = examples(noisy, preprocess), examples(judges, preprocess)
    found = clean(train, validation, CLASSES, steps=15, progress=False)
    weights = np.asarray(found.psi.weights)
    assert weights[wrong].mean() < weights[~wrong].mean() - 0.2
    assert auc(weights, wrong) > 0.8
    assert precision(weights, wrong) > 0.7
    assert found.losses[-1] < 0.8 * found.losses[0]
    assert found.psi.log_l2 == equal_weights(train, 0.1).log_l2

    alike = tune(train, validation, CLASSES, steps=5, progress=False)
    assert np.ptp(alike.psi.weights) == 0
    assert min(alike.losses) < alike.losses[0]
    held_out = examples(data.load("fashion_mnist_small", "test"), preprocess)
    assert accuracy(found.classifier, held_out) > accuracy(alike.classifier, held_out)


def test_labels_are_corrupted_where_it_says():
    truth, _ = split(10)
    noisy, wrong = corrupt(truth, 0.3, np.random.default_rng(0))
    assert wrong.sum() == 30
    np.testing.assert_array_equal(noisy.labels != truth.labels, wrong)
    assert set(noisy.labels) <= set(range(CLASSES))
    with pytest.raises(ValueError, match=r"fraction is 1\.5"):
        corrupt(truth, 1.5, np.random.default_rng(0))


def test_scores():
    wrong = np.array([True, False, True, False])
    assert auc(np.array([0.1, 0.9, 0.2, 0.8]), wrong) == 1
    assert auc(np.zeros(4), wrong) == 0.5
    assert precision(np.array([0.1, 0.2, 0.3, 0.4]), wrong) == 0.5


def test_bad_input_is_refused_in_words():
    truth, judges = split(1)
    train, validation = (examples(each, data.standardize(each.images)) for each in (truth, judges))
    with pytest.raises(ValueError, match="l2 is 0"):
        clean(train, validation, CLASSES, l2=0.0)
    with pytest.raises(ValueError, match="at least one"):
        clean(train, validation, CLASSES, steps=0)
