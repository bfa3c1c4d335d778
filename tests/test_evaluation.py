"""Augmented and hard-label evaluation, tables across networks, and choosing on held-out images."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import (
    Augment,
    Coreset,
    Evaluation,
    KeepBest,
    convnet_for,
    cross_entropy,
    cross_evaluate,
    data,
    distill,
    evaluate,
    export,
    hard_labels,
    load_result,
    privacy,
    train_network,
)
from rcig_eqx.data import Dataset, hold_out
from rcig_eqx.evaluation._evaluate import correct
from rcig_eqx.methods import frepo

NETWORK = convnet_for((14, 14, 1), 3, width=4, depth=1, softplus=None)
BRIEF = {"model": NETWORK, "num_networks": 2, "steps": 20, "learning_rate": 3e-3, "progress": False}


def subset(split: str, each: int) -> Dataset:
    whole = data.load("fashion_mnist_small", split)
    chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:each] for c in range(3)])
    images = whole.images[chosen, ::2, ::2]
    return Dataset(images, whole.labels[chosen], whole.class_names[:3])


TRAIN, TEST = subset("train", 20), subset("test", 10)


def distilled(train=TRAIN, steps=3, callbacks=()):
    return distill(
        train, images_per_class=1, key=jr.key(0), method=frepo(), model=NETWORK, batch_size=16,
        steps=steps, callbacks=callbacks, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return distilled()


def test_hard_labels_are_the_first_choice_of_learned_ones():
    labels = jnp.array([[0.1, 0.7, -2.0], [3.0, 2.9, 0.0]])
    coreset = Coreset(jnp.ones((2, 4, 4, 1)), labels, jnp.zeros(()), flip=True)
    hard = hard_labels(coreset)
    np.testing.assert_array_equal(hard.labels, [[0, 1, 0], [1, 0, 0]])
    assert hard.flip
    assert hard.labels.dtype == labels.dtype


def test_hard_label_evaluation_trains_on_them_by_cross_entropy(result):
    report = evaluate(result, TEST, key=jr.key(1), labels="hard", **BRIEF)
    by_hand = evaluate(
        eqx.tree_at(lambda r: r.labels, result.coreset, hard_labels(result.coreset).labels),
        TEST, key=jr.key(1), loss=cross_entropy, **BRIEF,
    )  # fmt: skip
    np.testing.assert_array_equal(report.accuracies, by_hand.accuracies)
    assert "cross-entropy" in report.training["loss"]
    assert report.training["labels"].startswith("hard")
    assert report.baseline is not None


def test_augmentation_is_seen_by_training_and_told(result):
    seen = []

    def shifted(images, *, key):
        seen.append(images.shape)
        return images + jr.normal(key, images.shape[1:])

    plain = evaluate(result, TEST, key=jr.key(1), **BRIEF)
    noisy = evaluate(result, TEST, key=jr.key(1), augment=shifted, **BRIEF)
    assert set(seen) == {(3, 14, 14, 1)}
    assert not np.array_equal(plain.accuracies, noisy.accuracies)
    assert noisy.training["augmentation"] == {"name": "shifted"}
    assert "augmentation" not in plain.training
    paper = evaluate(result, TEST, key=jr.key(1), augment=True, **BRIEF)
    assert paper.training["augmentation"]["strategy"] == "crop_rotate_translate_cutout"
    assert "augmented by crop_rotate_translate_cutout" in str(paper)


def test_training_steps_have_their_own_augmentation():
    """One step's batch is what the function makes of it, with a key of its own every step."""
    X, y = jr.normal(jr.key(0), (3, 14, 14, 1)), jnp.eye(3)
    network = NETWORK(jr.key(1))
    same = train_network(network, X, y, steps=3, augment=lambda x, *, key: x, key=jr.key(2))
    plain = train_network(network, X, y, steps=3, key=jr.key(2))
    jax.tree.map(np.testing.assert_array_equal, *map(eqx.filter, (same, plain), [eqx.is_array] * 2))
    flipped = train_network(network, X, y, steps=3, augment=Augment("flip", flip=1.0),
                            key=jr.key(2))  # fmt: skip
    mirrored = train_network(network, X[:, :, ::-1], y, steps=3, key=jr.key(2))
    for a, b in zip(*map(jax.tree.leaves, map(eqx.filter, (flipped, mirrored), [eqx.is_array] * 2)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_best_is_judged_by_the_network_distilled_with():
    best = KeepBest(TEST, every=1, key=jr.key(0), num_networks=1, steps=2)
    distilled(steps=1, callbacks=[best])
    ((_, report),) = best.history
    network = report.training["network"]
    assert (network["width"], network["depth"], network["activation"]) == (4, 1, "relu")


@pytest.mark.parametrize("changed", [{"augment": "flip"}, {"labels": "hard"}])
def test_an_export_states_no_accuracy_that_its_reader_would_not_reach(result, tmp_path, changed):
    report = evaluate(result, TEST, key=jr.key(1), **BRIEF | changed)
    with pytest.raises(ValueError, match="measure one without augment"):
        export(result, tmp_path / "out", evaluation=report)
    assert not (tmp_path / "out").exists()


def test_the_interval_is_students():
    accuracies = np.array([0.5, 0.6, 0.7])
    report = Evaluation(accuracies, accuracies[:, None], ("a",), 1)
    low, high = report.interval()
    # The 97.5% point of Student's t with two degrees of freedom is 4.302653.
    assert high - 0.6 == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-6)
    assert low + high == pytest.approx(1.2)
    one = Evaluation(accuracies[:1], accuracies[:1, None], ("a",), 1)
    assert np.isnan(one.interval()).all()


def test_across_networks_every_cell_is_evaluate_alone(result):
    wide = convnet_for((14, 14, 1), 3, width=8, depth=1, softplus=None)
    brief = {name: value for name, value in BRIEF.items() if name != "model"}
    table = cross_evaluate(
        {"one": result, "two seeds": [result, result.last]},
        TEST, key=jr.key(1), models={"narrow": NETWORK, "wide": wide}, **brief,
    )  # fmt: skip
    assert table.columns == ["narrow", "wide"]
    alone = evaluate(result.coreset, TEST, key=jr.fold_in(jr.key(1), 0), **BRIEF)
    for row in ("one", "two seeds"):
        cell = table.cells[row]["narrow"].accuracies
        np.testing.assert_array_equal(cell[:2], alone.accuracies)
    assert table.cells["two seeds"]["wide"].accuracies.shape == (4,)
    assert table.cells["two seeds"]["wide"].per_class.shape == (4, 3)
    lines = str(table).splitlines()
    assert lines[1].split() == ["narrow", "wide"]
    assert lines[2].startswith("one ")
    assert f"{100 * table.cells['one']['wide'].mean:.1f} ± " in lines[2]
    assert table.to_markdown().splitlines()[1] == "| --- | --- | --- |"
    assert json.loads(json.dumps(table.to_json()))["one"]["wide"]["mean"] == pytest.approx(
        table.cells["one"]["wide"].mean
    )


def test_classes_in_another_order_are_refused(result):
    first, _, last = TEST.class_names
    other = Dataset(TEST.images, TEST.labels, TEST.class_names[::-1])
    two = Dataset(TEST.images, TEST.labels % 2, (first, last))  # as a folder without the second
    for test in (other, two):
        with pytest.raises(ValueError, match=r"is number \d of custom and number 2 of the set"):
            evaluate(result, test, key=jr.key(0), **BRIEF)
        with pytest.raises(ValueError, match="renumber the labels"):
            privacy.membership_inference(result, TRAIN, test, key=jr.key(0), at=(1,))
    fewer = Dataset(TEST.images, TEST.labels % 2, TEST.class_names[:2])
    assert evaluate(result, fewer, key=jr.key(0), **BRIEF).accuracies.shape == (2,)


def test_an_output_that_is_not_finite_is_no_choice():
    model = NETWORK(jr.key(0))
    broken = eqx.tree_at(
        lambda m: m.head.kernel, model, replace_fn=lambda k: k.at[0, 0].set(jnp.nan)
    )
    images, labels = jnp.ones((3, 14, 14, 1)), jnp.arange(3)
    assert int(correct(model, images, labels).sum()) == 1
    assert int(correct(broken, images, labels).sum()) == 0


@pytest.mark.parametrize("steps", [2, 20])  # weights that overflow only in the outputs; NaN ones
def test_networks_that_diverge_are_counted(result, steps):
    with pytest.warns(RuntimeWarning, match=r"4 of 4 networks diverged.*learning_rate=1e\+30"):
        report = evaluate(
            result, TEST, key=jr.key(0), model=NETWORK, num_networks=2, steps=steps,
            learning_rate=1e30, progress=False,
        )  # fmt: skip
    assert report.accuracies.tolist() == [0, 0]


def test_held_out_images_are_the_rest_of_each_class():
    train, held = hold_out(TRAIN, 0.25, seed=0)
    assert [(train.labels == c).sum() for c in range(3)] == [15] * 3
    assert [(held.labels == c).sum() for c in range(3)] == [5] * 3
    rows = lambda d: {(x.tobytes(), int(y)) for x, y in zip(d.images, d.labels, strict=True)}  # noqa: E731
    assert rows(train) | rows(held) == rows(TRAIN)
    assert rows(train).isdisjoint(rows(held))
    again = hold_out(TRAIN, 0.25, seed=0)[1]
    np.testing.assert_array_equal(again.images, held.images)


def test_the_best_is_kept_and_patience_ends_the_run(tmp_path):
    """A rate so high that the first test is the best: each later one counts against it."""
    train, held = hold_out(TRAIN, 0.5, seed=0)
    file = tmp_path / "best.safetensors"
    best = KeepBest(held, every=2, patience=2, path=file, key=jr.key(3), **BRIEF)
    seen = {}

    def watch(progress):
        seen[progress.step] = progress.result()

    run = distilled(train, 40, [watch, best])
    assert best.result is not None
    steps, reports = zip(*best.history, strict=True)
    means = [report.mean for report in reports]
    chosen = steps[int(np.argmax(means))]
    np.testing.assert_array_equal(best.result.coreset.images, seen[chosen].coreset.images)
    np.testing.assert_array_equal(load_result(file).coreset.images, best.result.coreset.images)
    alone = evaluate(seen[chosen].coreset, held, key=jr.key(3), **BRIEF)
    assert alone.mean == max(means)
    since = len(means) - 1 - int(np.argmax(means))
    assert since == 2 or run.recipe["steps_done"] == 40
    assert steps == tuple(range(2, steps[-1] + 1, 2))

    resumed = KeepBest(held, every=1, path=file, key=jr.key(3), **BRIEF)
    distilled(train, 1, [resumed])
    assert [step for step, _ in resumed.history] == [chosen, 1]
    assert resumed.history[0][1].mean == max(means)
    kept = load_result(file).recipe["steps_done"]
    assert kept == (1 if resumed.history[1][1].mean > max(means) else chosen)
