"""Evaluations: classes, convergence, intervals, networks, and choosing on held-out images."""

import dataclasses
import json
import unicodedata
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import (
    Coreset,
    KeepBest,
    convnet_for,
    cross_evaluate,
    data,
    distill,
    evaluate,
    export,
    load_result,
    privacy,
)
from rcig_eqx._coreset import hard_labels
from rcig_eqx.data import Dataset, hold_out
from rcig_eqx.evaluation import (
    METRICS,
    Augment,
    Evaluation,
    _measure,
    cross_entropy,
    evaluate_full,
    judge,
    train_network,
)
from rcig_eqx.evaluation._across import pooled
from rcig_eqx.evaluation._classes import match_classes
from rcig_eqx.evaluation._measure import correct
from rcig_eqx.evaluation._train_network import have_converged
from rcig_eqx.methods import frepo

NETWORK = convnet_for((14, 14, 1), 3, width=4, depth=1, softplus=None)
BRIEF: Any = {
    "model": NETWORK,
    "num_networks": 2,
    "steps": 20,
    "learning_rate": 3e-3,
    "progress": False,
}


def subset(split: str, each: int) -> Dataset:
    whole = data.load("fashion_mnist_small", split)
    chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:each] for c in range(3)])
    images = whole.images[chosen, ::2, ::2]
    return Dataset(images, whole.labels[chosen], whole.class_names[:3])


TRAIN, TEST = subset("train", 20), subset("test", 10)


def distilled(train=TRAIN, steps=3, callbacks=()):
    return distill(
        train, images_per_class=1, key=jr.key(0), method=frepo(), model=NETWORK,
        batch_size=min(16, len(train)),
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


# Classes

ACCENT, DIGITS = unicodedata.normalize("NFC", "dög"), ("0", "1", "2")
DECOMPOSED = unicodedata.normalize("NFD", ACCENT)

# name: distilled names (`None` of a bare coreset), their number, the test set's, its numbers there
MATCHED = {
    "the same": (("a", "b", "c"), 3, ("a", "b", "c"), [0, 1, 2]),
    "another order": (("a", "b", "c"), 3, ("c", "a", "b"), [2, 0, 1]),
    "some lacking": (("a", "b", "c"), 3, ("c", "a"), [2, 0]),
    "NFD for NFC": ((ACCENT, "ox"), 2, ("ox", DECOMPOSED), [1, 0]),
    "NFC for NFD": (("ox", DECOMPOSED), 2, (ACCENT, "ox"), [1, 0]),
    "a bare test set": (("a", "b", "c"), 3, DIGITS, [0, 1, 2]),
    "a bare test set, labels short of the last class": (("a", "b", "c"), 3, DIGITS[:2], [0, 1]),
    "distilled from bare arrays": (DIGITS, 3, ("a", "b", "c"), [0, 1, 2]),
    "digits in another order": (DIGITS, 3, ("2", "1", "0"), [2, 1, 0]),
    "digits as folders sort them": (("0", "1", "10"), 3, ("10", "0"), [2, 0]),
    "both bare": (DIGITS, 3, DIGITS[:2], [0, 1]),
    "a bare coreset": (None, 3, ("a", "b", "c"), [0, 1, 2]),
    "a bare coreset, bare test set": (None, 3, DIGITS[:2], [0, 1]),
}
UNMATCHED = {  # and what the error names
    "one other name": (("a", "b", "c"), 3, ("a", "b", "d"), "'d'"),
    "all others": (("a", "b", "c"), 3, ("x", "y", "z"), "'x', 'y', 'z'"),
    "an unlabeled folder": (("a", "b", "c"), 3, ("images",), "'images'"),
    "more": (("a", "b"), 2, ("a", "b", "c"), "'c'"),
    "another spelling": (("a", "b"), 2, ("A", "b"), "'A'"),
    "an unlabeled folder of numbers": (DIGITS, 3, ("images",), "3 classes"),
    "an unlabeled folder of a bare coreset": (None, 3, ("images",), "3 classes"),
    "more than bare arrays": (DIGITS[:2], 2, ("a", "b", "c"), "2 classes and the test set 3"),
    "a bare test set of more": (("a", "b"), 2, DIGITS, "2 classes and the test set 3"),
    "numbers from 1": (DIGITS, 3, ("1", "2", "3"), "'3'"),
    "numbers that may be names": (("0", "1", "10", "2"), 4, DIGITS, "class_names"),
}


def named(*names: str) -> Dataset:
    images = np.zeros((len(names), 4, 4, 1), np.uint8)
    return Dataset(images, np.arange(len(names)), names)


@pytest.mark.parametrize("case", MATCHED)
def test_classes_are_matched_by_name(case):
    names, count, there, numbers = MATCHED[case]
    assert match_classes(named(*there), names, count).tolist() == numbers


@pytest.mark.parametrize("case", UNMATCHED)
def test_classes_that_do_not_match_are_named(case):
    names, count, there, says = UNMATCHED[case]
    with pytest.raises(ValueError, match=says):
        match_classes(named(*there), names, count)


def test_a_test_set_in_another_order_gives_the_same_accuracies(result):
    turned = Dataset(TEST.images, 2 - TEST.labels, TEST.class_names[::-1])
    two = TEST.subset(np.flatnonzero(TEST.labels != 1))
    two = Dataset(two.images, two.labels // 2, (TEST.class_names[0], TEST.class_names[2]))
    reports = [evaluate(result, t, key=jr.key(0), **BRIEF) for t in (TEST, turned, two)]
    np.testing.assert_array_equal(reports[1].per_class, reports[0].per_class)
    np.testing.assert_array_equal(reports[2].per_class[:, [0, 2]], reports[0].per_class[:, [0, 2]])
    assert np.isnan(reports[2].per_class[:, 1]).all()
    assert all(report.class_names == result.class_names for report in reports)
    told = [
        privacy.membership_inference(
            result,
            TRAIN,
            t,
            key=jr.key(0),
            at=(20,),
            attacks=[privacy.Threshold()],
            model=NETWORK,
            num_networks=1,
            learning_rate=3e-3,
            progress=False,
        )
        for t in (TEST, turned)
    ]
    for name in ("real", "distilled"):
        accuracy = told[0].curves[name].accuracy
        np.testing.assert_array_equal(told[1].curves[name].accuracy, accuracy)


OTHER = dataclasses.replace(TEST, class_names=("ant", *TEST.class_names[1:]))
CALLS = {
    "evaluate": lambda r: evaluate(r, OTHER, key=jr.key(0)),
    "baseline": lambda r: evaluate(r, TEST, key=jr.key(0), baseline=OTHER),
    "a bare coreset": lambda r: evaluate(
        r.coreset, OTHER, key=jr.key(0), class_names=r.class_names
    ),
    "cross_evaluate": lambda r: cross_evaluate({"a": r}, OTHER, key=jr.key(0)),
    "cross_evaluate, several": lambda r: cross_evaluate({"a": [r, r]}, OTHER, key=jr.key(0)),
    "KeepBest": lambda r: distilled(callbacks=[KeepBest(OTHER, every=1, key=jr.key(0), **BRIEF)]),
    "privacy test": lambda r: privacy.membership_inference(r, TRAIN, OTHER, key=jr.key(0)),
    "privacy train": lambda r: privacy.membership_inference(r, OTHER, TEST, key=jr.key(0)),
    "privacy sets": lambda r: privacy.membership_inference(
        {"mine": OTHER}, TRAIN, TEST, key=jr.key(0)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_entry_refuses_classes_that_were_not_distilled(result, name):
    with pytest.raises(ValueError, match="'ant'"):
        CALLS[name](result)


# Convergence

STEPS = np.linspace(0, 1, 100)
CURVES = {  # the loss of each step, whether the images got their classes, whether it converged
    "fallen to nothing": (np.exp(-10 * STEPS), 1.0, True),
    "still falling": (np.exp(-2 * STEPS), 1.0, False),
    "flat at the end, where the rate is nothing": (np.maximum(1 - STEPS, 0.2), 1.0, False),
    "a minimum above 0": (1 + np.exp(-20 * STEPS), 1.0, True),
    "stuck there with wrong classes": (1 + np.exp(-20 * STEPS), 0.5, False),
    "never moved": (np.ones(100), 1.0, False),
    "rising": (1 + STEPS, 1.0, False),
    "diverged": (np.full(100, np.nan), 0.0, False),
}


@pytest.mark.parametrize("name", CURVES)
def test_converged_by_the_course_of_the_loss(name):
    losses, agreed, converged = CURVES[name]
    found = have_converged(losses[None], np.full((1, 100), agreed))
    assert found.tolist() == [converged]


@pytest.mark.parametrize("steps", [2, 400])
def test_networks_that_have_not_converged_are_told(result, steps):
    brief: Any = BRIEF | {"steps": steps, "learning_rate": 1e-4 if steps == 2 else 1e-2}
    if steps == 400:
        report = evaluate(result, TEST, key=jr.key(1), **brief)
        assert report.remarks == ()
    else:
        with pytest.warns(
            RuntimeWarning, match=r"had not converged.*steps=10 or learning_rate=0.0"
        ):
            report = evaluate(result, TEST, key=jr.key(1), **brief)
        assert "had not converged" in str(report)
    parts: Any = (report, report.baseline)
    for part in parts:
        assert part.converged.tolist() == [steps == 400] * 2
        assert part.unconverged == (0 if steps == 400 else 2)
    assert f"Final training loss {parts[0].losses.mean():.3g}, on random images" in str(report)


def test_the_rate_goes_by_the_size_of_the_set(tmp_path):
    """The paper's for up to 100 images; ten times as much above, in an export's card too."""
    few, many = TRAIN.subset(np.arange(99) % 60), TRAIN.subset(np.arange(102) % 60)
    brief: Any = BRIEF | {"learning_rate": None, "steps": 1}
    for size, start, peak in ((33, few, 1e-4), (34, many, 1e-3)):
        start = Dataset(start.images, np.arange(len(start)) // size, start.class_names)
        made = distill(
            start, images_per_class=size, key=jr.key(0), method=frepo(), model=NETWORK,
            batch_size=16, steps=1, progress=False,
        )  # fmt: skip
        report = evaluate(made, TEST, key=jr.key(1), baseline=False, **brief)
        assert report.training["learning_rate"]["peak"] == peak
        card = json.loads((export(made, tmp_path / str(size)) / "card.json").read_text())
        assert card["training"]["learning_rate"]["peak"] == peak


def test_the_final_loss_is_that_of_training(result):
    """With one step it is the loss of a fresh network."""
    report: Any = evaluate(result, TEST, key=jr.key(1), **BRIEF | {"steps": 1, "num_networks": 1})
    fresh = NETWORK(jr.split(jr.split(jr.key(1), 1)[0])[0])
    X, y = result.coreset.support()
    assert report.losses[0] == pytest.approx(float(jnp.mean((fresh(X) - y) ** 2)), rel=1e-4)


def test_a_distilled_set_behind_random_images_is_explained():
    low, high, fitted = np.array([0.3]), np.array([0.5]), np.array([True])
    random = Evaluation(high, high[:, None], ("a",), 9, losses=low, converged=fitted)
    behind = Evaluation(low, low[:, None], ("a",), 9, random, losses=low, converged=~fitted)
    early, why = behind.remarks
    assert "1 of 1 networks on the distilled set" in early
    assert "random images" not in early
    assert "once the networks converge" in why
    (why,) = dataclasses.replace(behind, converged=fitted).remarks
    assert "Distill for more steps" in why
    assert dataclasses.replace(behind, accuracies=high + 0.1, converged=fitted).remarks == ()


@pytest.mark.parametrize("metrics", [(), ("balanced_accuracy",)])
def test_confusion_counts_the_answers_of_all_networks(result, metrics):
    report = evaluate(result, TEST, key=jr.key(1), metrics=metrics, **BRIEF)
    for part in (report, report.baseline):
        assert part is not None
        assert part.confusion is not None
        np.testing.assert_array_equal(part.confusion.sum(1), [20, 20, 20])
        right = part.per_class.sum(0) * 10
        np.testing.assert_allclose(np.diag(part.confusion), right)
    read = Evaluation.from_json(json.loads(json.dumps(report.to_json())))
    np.testing.assert_array_equal(read.confusion, report.confusion)


def test_a_diverged_network_answers_nothing(result):
    with pytest.warns(RuntimeWarning, match="diverged"):
        report = evaluate(
            result, TEST, key=jr.key(1), baseline=False, **BRIEF | {"learning_rate": 1e30}
        )
    assert report.diverged == 2
    assert report.confusion is not None
    assert not report.confusion.any()


def test_pooled_confusions_are_by_name(result):
    report = evaluate(result, TEST, key=jr.key(1), baseline=False, **BRIEF)
    order = [2, 0, 1]
    assert report.confusion is not None
    other = dataclasses.replace(
        report,
        class_names=tuple(report.class_names[c] for c in order),
        per_class=report.per_class[:, order],
        confusion=report.confusion[np.ix_(order, order)],
    )
    np.testing.assert_array_equal(pooled([report, other]).confusion, 2 * report.confusion)
    unknown = dataclasses.replace(report, confusion=None)
    assert pooled([report, unknown]).confusion is None


def test_counts_of_very_many_classes_are_left_out(monkeypatch):
    assert _measure._confusion(np.zeros((1, 2), int), np.zeros(2, int), 2_001) is None
    names = [str(i) for i in range(2_001)]
    report = {"steps": 1, "training": {}, "tested_on": {}, "baseline": None, "accuracies": [0.5]}
    report |= {"per_class": {n: [0.5] for n in names}, "mean": 0.5, "std": 0.0}
    assert Evaluation.from_json(report).confusion is None
    with pytest.raises(ValueError, match="too many classes"):
        Evaluation.from_json(report | {"confusion": {n: {} for n in names}})


def test_all_of_the_training_data_are_trained_on(result):
    """As the row of `judge`, network by network."""
    report = evaluate_full(
        result, TRAIN, TEST, key=jr.key(1), model=NETWORK, num_networks=2, epochs=600,
        progress=False,
    )  # fmt: skip
    judgement = judge(
        result, TRAIN, TEST, key=jr.key(1), model=NETWORK, num_networks=2, epochs=600, steps=1,
        attacked=0, augment=False, progress=False,
    )  # fmt: skip
    (row,) = (row for row in judgement.rows if row.trained_on == "all training data")
    np.testing.assert_array_equal(report.accuracies, row.plain)
    assert report.class_names == TEST.class_names


def test_too_few_epochs_are_told(result):
    with pytest.warns(RuntimeWarning, match="had not converged: pass epochs=5"):
        evaluate_full(
            result, TRAIN, TEST, key=jr.key(1), model=NETWORK, num_networks=1, epochs=1,
            progress=False,
        )  # fmt: skip


def test_an_evaluation_of_an_earlier_version_is_read(result):
    written = json.loads(json.dumps(evaluate(result, TEST, key=jr.key(1), **BRIEF).to_json()))
    read = Evaluation.from_json(written)
    assert read.to_json() == written
    for part in (written, written["baseline"]):
        for name in ("sets", "losses", "converged", "metrics", "confusion"):
            del part[name]
    earlier = Evaluation.from_json(written)
    assert (earlier.sets, earlier.losses, earlier.converged) == (None, None, None)
    assert earlier.remarks[: earlier.unconverged] == ()
    assert "Final" not in str(earlier)
    np.testing.assert_array_equal(earlier.accuracies, read.accuracies)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sets", [0]),
        ("sets", [0.0, 1.0]),
        ("losses", ["0", "1"]),
        ("converged", [1, 0]),
        ("metrics", {"metrics": [0.5]}),
        ("metrics", {"metrics": ["0", "1"]}),
        ("metrics", {"of": None}),
        ("confusion", {"T-shirt/top": {}}),
        ("confusion", {name: {"Trouser": 1.0} for name in TEST.class_names}),
        ("confusion", {name: {"Trouser": -1} for name in TEST.class_names}),
    ],
)
def test_an_evaluation_of_wrong_columns_is_refused(result, name, value):
    written = evaluate(result, TEST, key=jr.key(1), **BRIEF).to_json() | {name: value}
    with pytest.raises(ValueError, match=name):
        Evaluation.from_json(written)


# Metrics


@pytest.fixture(scope="module")
def measured(result):
    """Of a test set with nine images of one class and one each of the others."""
    uneven = TEST.subset(np.r_[:9, 10, 20])
    return uneven, evaluate(
        result, uneven, key=jr.key(1), metrics=("accuracy", "balanced_accuracy"), **BRIEF
    )


def test_metrics_are_of_the_networks_that_the_accuracies_are_of(result, measured):
    uneven, report = measured
    plain = evaluate(result, uneven, key=jr.key(1), **BRIEF)
    assert plain.metrics == {}
    assert report.baseline is not None
    assert plain.baseline is not None
    for ours, other in ((report, plain), (report.baseline, plain.baseline)):
        np.testing.assert_array_equal(ours.accuracies, other.accuracies)
        np.testing.assert_array_equal(ours.per_class, other.per_class)
        np.testing.assert_allclose(ours.metrics["accuracy"], ours.accuracies, rtol=1e-6)
        balanced = ours.per_class.mean(1)
        np.testing.assert_allclose(ours.metrics["balanced_accuracy"], balanced, rtol=1e-6)
        assert not np.allclose(balanced, ours.accuracies)


def test_balanced_accuracy_leaves_out_classes_without_test_images():
    labels = jnp.array([0, 0, 0, 2, 2])
    outputs = jax.nn.one_hot(jnp.array([0, 0, 1, 2, 1]), 4).at[0, 3].set(jnp.nan)
    assert float(METRICS["balanced_accuracy"](outputs, labels)) == pytest.approx((1 / 3 + 0.5) / 2)
    assert float(METRICS["accuracy"](outputs, labels)) == pytest.approx(2 / 5)


def test_metrics_are_written_read_shown_and_pooled(measured):
    _, report = measured
    written = json.loads(json.dumps(report.to_json()))
    read = Evaluation.from_json(written)
    assert read.to_json() == written
    np.testing.assert_array_equal(
        read.metrics["balanced_accuracy"], report.metrics["balanced_accuracy"]
    )
    shown = f"balanced_accuracy  {report.metrics['balanced_accuracy'].mean():.4g}   random "
    assert shown in str(report)
    twice = pooled([report, read]).metrics["accuracy"]
    np.testing.assert_array_equal(twice, np.tile(report.metrics["accuracy"], 2))
    assert pooled([report, dataclasses.replace(read, metrics={})]).metrics == {}
    lost = dataclasses.replace(report, metrics={"loss": np.array([np.nan, 1.0])}, baseline=None)
    again = Evaluation.from_json(json.loads(json.dumps(lost.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.metrics["loss"], [np.nan, 1.0])


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (("balanced",), r"metrics is 'balanced': did you mean 'balanced_accuracy'\?"),
        ({"own": lambda outputs, labels: outputs}, r"'own' returned an array \(30, 3\)"),
        ({"own": lambda outputs: outputs.sum()}, "'own' cannot be called"),
    ],
)
def test_what_is_no_metric_is_told_before_any_network_is_trained(
    result, monkeypatch, metrics, says
):
    monkeypatch.setattr(_measure, "_train_and_test", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=says):
        evaluate(result, TEST, key=jr.key(1), metrics=metrics, **BRIEF)


# What ± and the interval are of


def parts_of(accuracies: np.ndarray) -> list[Evaluation]:
    return [Evaluation(row, row[:, None], ("a",), 1) for row in accuracies]


@pytest.mark.parametrize("between", [0.0, 0.028])
def test_the_interval_of_pooled_sets_covers_their_mean(between):
    """Sets differ by `between`, networks of one set by half of that or by 1.4 points: of 2,000
    intervals 95% hold the mean. Over all networks as if independent, about 60% would."""
    rng, trials = np.random.default_rng(0), 2000
    covered, naive = 0, 0
    for _ in range(trials):
        sets = 0.5 + between * rng.standard_normal((3, 1)) + 0.014 * rng.standard_normal((3, 5))
        whole = pooled(parts_of(sets))
        low, high = whole.interval()
        covered += low <= 0.5 <= high
        low, high = dataclasses.replace(whole, sets=None).interval()
        naive += low <= 0.5 <= high
    assert abs(covered / trials - 0.95) < 3 * (0.95 * 0.05 / trials) ** 0.5
    assert between == 0 or naive / trials < 0.75


def test_pooling_keeps_sets_apart_and_classes_together():
    one, two = parts_of(np.array([[0.1, 0.2], [0.5, 0.7]]))
    again = pooled([pooled([one, two]), one])
    assert again.sets is not None
    assert again.sets.tolist() == [0, 0, 1, 1, 2, 2]
    x, y = (
        Evaluation(np.array([0.5]), np.array([row]), names, 1)
        for row, names in (([0.0, 1.0], ("a", "b")), ([1.0, 0.0], ("b", "a")))
    )
    np.testing.assert_array_equal(pooled([x, y]).per_class, [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match="other classes"):
        pooled([x, one])


def test_every_network_of_the_baseline_has_its_own_random_images(result):
    assert len(result.baselines) == 5
    images = [np.asarray(draw.images) for draw in result.baselines]
    assert len({x.tobytes() for x in images}) == 5
    report = evaluate(result, TEST, key=jr.key(1), **BRIEF)
    assert report.baseline is not None
    for number, draw in enumerate(result.baselines[:2]):
        alone = evaluate(draw, TEST, key=jr.key(1), **BRIEF)
        assert report.baseline.accuracies[number] == alone.accuracies[number]
    assert "2 random draws" in str(report)
    assert "± is the standard deviation over 2 networks" in str(report)
    one = evaluate(dataclasses.replace(result, draws=None), TEST, key=jr.key(1), **BRIEF)
    assert "1 random draw)" in str(one)
    assert one.baseline is not None
    assert one.baseline.sets is None


def test_random_draws_are_kept_with_the_result(result, tmp_path):
    again = load_result(result.save(tmp_path / "r.safetensors"))
    for a, b in zip(again.baselines, result.baselines, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
    dataclasses.replace(result, draws=None).save(tmp_path / "earlier.safetensors")
    assert len(load_result(tmp_path / "earlier.safetensors").baselines) == 1
    few = distilled(TRAIN.subset(np.flatnonzero(np.arange(60) % 20 < 2)), steps=1)
    assert len(few.baselines) == 2  # of two images per class


def test_a_bare_coreset_is_compared_with_random_training_images(result):
    assert evaluate(result.coreset, TEST, key=jr.key(1), **BRIEF).baseline is None
    assert evaluate(result, TEST, key=jr.key(1), baseline=False, **BRIEF).baseline is None
    turned = Dataset(TRAIN.images, 2 - TRAIN.labels, TRAIN.class_names[::-1])
    long: Any = BRIEF | {"steps": 300}
    reports = [
        evaluate(result.coreset, TEST, key=jr.key(1), baseline=TRAIN, **long),
        evaluate(result, TEST, key=jr.key(1), baseline=turned, **long),
    ]
    for report in reports:
        assert report.baseline is not None
        assert report.baseline.mean > 0.5  # of three classes; of classes confused, below a third
        assert report.baseline.sets is not None
        assert report.baseline.sets.tolist() == [0, 1]


def test_a_report_says_whether_images_were_mirrored(result):
    plain = evaluate(result, TEST, key=jr.key(1), **BRIEF)
    assert "not mirrored: flip=False" in str(plain)
    both = dataclasses.replace(result.coreset, flip=True)
    mirrored = evaluate(both, TEST, key=jr.key(1), **BRIEF)
    assert ", mirrored" in str(mirrored)
    assert mirrored.training["mirrored"] is True


def test_without_models_sets_are_evaluated_as_distilled(result):
    brief = {name: value for name, value in BRIEF.items() if name != "model"}
    table = cross_evaluate({"a": result}, TEST, key=jr.key(1), **brief)
    (cell,) = table.cells["a"].values()
    assert (cell.training["network"]["width"], cell.training["network"]["depth"]) == (4, 1)
    assert str(table).startswith("test accuracy in %, mean ± standard deviation over 2 networks")


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
