"""Judging a distilled set: every row is what `evaluate` says, and nothing is refused late."""

import dataclasses
import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest

from rcig_eqx import (
    Coreset,
    convnet_for,
    data,
    distill,
    evaluate,
    evaluation,
    export,
    judge,
    load_export,
)
from rcig_eqx._coreset import centered_labels
from rcig_eqx.data import Dataset, standardize, zca
from rcig_eqx.evaluation import Evaluation, Judgement, _measure, cross_entropy
from rcig_eqx.evaluation._attacks import Robustness
from rcig_eqx.evaluation._evaluate import random_draws
from rcig_eqx.evaluation._judge import _own_budget, _probe, _scores, _unconverged
from rcig_eqx.evaluation._rows import (
    BITS,
    CENTROIDS,
    FULL,
    HARD,
    LEARNED,
    RANDOM,
    Asked,
    Kind,
    rows_of_size,
)
from rcig_eqx.evaluation._train_network import Training, mean_squared
from rcig_eqx.initializers import INITIALIZERS, kmeans, real_coreset
from rcig_eqx.methods import frepo

CLASSES = 3
NETWORK = convnet_for((14, 14, 1), CLASSES, width=8, depth=1, softplus=None)
BRIEF: Any = {"num_networks": 2, "steps": 10, "learning_rate": 3e-3, "progress": False}
FEW: Any = {"full": False, "attacked": 0, "augment": False} | BRIEF


def subset(split: str, each: int) -> Dataset:
    whole = data.load("fashion_mnist_small", split)
    chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:each] for c in range(CLASSES)])
    images = whole.images[chosen, ::2, ::2]
    return Dataset(images, whole.labels[chosen], whole.class_names[:CLASSES], "shirts")


TRAIN, TEST = subset("train", 20), subset("test", 10)


@pytest.fixture(scope="module")
def result():
    return distill(
        TRAIN, images_per_class=1, key=jr.key(0), method=frepo(), model=NETWORK, batch_size=16,
        steps=3, progress=False,
    )  # fmt: skip


def accuracies(report: Judgement, name: str, column: str = "plain") -> np.ndarray:
    found = getattr(report[name], column)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(result):
    """A judgement of everything there is to judge."""
    return judge(result, TRAIN, TEST, key=jr.key(1), attacked=20, epochs=3, **BRIEF)


@pytest.mark.parametrize("augment", [None, True])
def test_rows_are_what_evaluate_measures_with_the_same_key(result, whole, augment):
    column = "augmented" if augment else "plain"
    learned, hard = (
        evaluate(
            result.coreset, TEST, key=jr.key(1), baseline=TRAIN, class_names=result.class_names,
            model=NETWORK, augment=augment, labels=labels, **BRIEF,
        )
        for labels in ("learned", "hard")
    )  # fmt: skip
    assert learned.baseline  # by the loss of the set, with labels of that kind
    for name, report in ((LEARNED, learned), (HARD, hard), (RANDOM, learned.baseline)):
        np.testing.assert_array_equal(accuracies(whole, name, column), report.accuracies)


def test_random_images_of_as_many_bits_are_the_most_that_fit(result, whole):
    # 14 · 14 pixels of 8 bits and a class of 2 bits in 32 · (14 · 14 + 3) bits
    assert whole.protocol["bits_per_class"] == 6368
    assert whole[BITS].images_per_class == 6368 // (1568 + 2) == 4
    asked = Asked(1, 1e-3, mean_squared)
    for bits, each, note in (
        (2 * 1570, 2, ""),
        (2 * 1570 - 1, 1, "as above"),
        (1569, 0, "none fits"),
        (None, 0, "pass bits_per_class"),
        (10**6, 20, "5, all there are"),
    ):
        kinds = rows_of_size(result.coreset, TRAIN, asked, bits, 5, jr.key(1))
        (kind,) = (kind for kind in kinds if kind.name == BITS)
        assert (kind.images_per_class, kind.note) == (each, note)
        assert len(kind.sets) == (5 if each > 1 else 0)
        for draw in kind.sets:
            np.testing.assert_array_equal(draw.labels.argmax(1), np.repeat(range(CLASSES), each))
        apart = {np.asarray(draw.images).tobytes() for draw in kind.sets}
        assert len(apart) == len(kind.sets)


def test_random_images_of_as_many_bits_are_other_draws_of_their_own_steps_and_rate(result):
    bits = 20 * 1570  # 60 images, which take 2000 steps, where 3 take 1000
    kinds = rows_of_size(result.coreset, TRAIN, Asked(None, None, mean_squared), bits, 3, jr.key(1))
    by_name = {kind.name: kind for kind in kinds}
    assert by_name[RANDOM].training == Training(1000, 1e-4, 256, mean_squared, None)
    assert by_name[BITS].training == Training(2000, 1e-4, 256, mean_squared, None)
    assert by_name[BITS].images_per_class == 20
    assert _own_budget(kinds) == {"steps": 2000, "learning_rate": 1e-4, "batch_size": 256}
    twice = Dataset(
        np.tile(TRAIN.images, (2, 1, 1, 1)), np.tile(TRAIN.labels, 2), TRAIN.class_names
    )
    asked = Asked(None, None, mean_squared)
    *_, many, _ = rows_of_size(result.coreset, twice, asked, 40 * 1570, 1, jr.key(1))
    assert (many.name, many.images_per_class) == (BITS, 40)
    assert many.training == Training(2000, 1e-3, 64, mean_squared, None)  # 120 images
    given = rows_of_size(result.coreset, TRAIN, Asked(7, 0.1, mean_squared), bits, 3, jr.key(1))
    assert {kind.training.steps for kind in given} == {7}
    assert {kind.training.learning_rate for kind in given} == {0.1}
    assert _own_budget(given) is None
    for draws_key, same in ((jr.key(1), False), (jr.fold_in(jr.key(1), 2**31 + 2), True)):
        (draw,) = random_draws(result.coreset, twice, 40, 1, draws_key)
        assert np.array_equal(draw.images, many.sets[0].images) == same


def test_all_training_data_are_learned_as_long_as_asked_for(result):
    short, long = (
        judge(result, TRAIN, TEST, key=jr.key(1), **FEW | {"full": True, "epochs": epochs})
        for epochs in (1, 400)
    )
    images = jnp.asarray(TRAIN.images)
    everything = Coreset(
        result.coreset.preprocess(images), jax.nn.one_hot(TRAIN.labels, CLASSES), jnp.zeros(()),
        result.coreset.preprocess,
    )  # fmt: skip
    by_hand = evaluate(
        everything, TEST, key=jr.key(1), labels="hard", model=NETWORK,
        **BRIEF | {"steps": 400 * len(TRAIN) // 256, "learning_rate": 1e-3},
    )  # fmt: skip
    np.testing.assert_array_equal(accuracies(long, FULL), by_hand.accuracies)
    assert accuracies(short, FULL).mean() < accuracies(long, FULL).mean()
    assert long[FULL].augmented is None
    assert "400 epochs" in str(long)


def test_scores_are_of_the_rows(whole):
    mean = {row.trained_on: row.plain.mean() for row in whole.rows}
    learned, hard, random, full = (mean[name] for name in (LEARNED, HARD, RANDOM, FULL))
    assert whole.scores["hlr"] == pytest.approx(full - hard)
    assert whole.scores["ior"] == pytest.approx(learned - random)
    assert whole.scores["lrs"] == pytest.approx(evaluation.lrs(full, hard, learned, random))
    augmented = [accuracies(whole, name, "augmented").mean() for name in (LEARNED, RANDOM)]
    assert whole.scores["ars"] == pytest.approx(evaluation.ars(learned, random, *augmented))
    clean, *attacked = (mean[f"{LEARNED}, {a}"] for a in ("not attacked", "FGSM", "PGD"))
    assert whole.scores["rr"] == pytest.approx(evaluation.rr(clean, attacked))
    assert whole.scores["relative_accuracy"] == pytest.approx(learned / full)
    assert 0 <= min(attacked) <= clean
    # of 20 of the test images, where the row is of all 30
    right = 20 * accuracies(whole, f"{LEARNED}, not attacked")
    np.testing.assert_allclose(right, np.rint(right), atol=1e-5)


def test_attacks_are_of_the_networks_of_the_first_row(result, whole):
    """On as many images as are tested, what is not attacked has the accuracy of the row."""
    report = judge(result, TRAIN, TEST, key=jr.key(1), **FEW | {"attacked": 10**6})
    assert report.protocol["attacks"]["images"] == len(TEST)
    clean = accuracies(report, f"{LEARNED}, not attacked")
    np.testing.assert_allclose(clean, accuracies(report, LEARNED), atol=1e-6)
    np.testing.assert_array_equal(accuracies(report, LEARNED), accuracies(whole, LEARNED))


def test_what_is_left_out_is_in_no_row_and_no_score(result):
    without = judge(result, TRAIN, TEST, key=jr.key(1), **FEW)
    assert [row.trained_on for row in without.rows] == [LEARNED, HARD, RANDOM, BITS, CENTROIDS]
    assert without.scores.keys() == {"ior"}
    assert all(row.augmented is None for row in without.rows)
    given = judge(result, TRAIN, TEST, key=jr.key(1), **FEW | {"full": 0.911})
    assert given[FULL].cells() == [FULL, "all", "91.10% (given)", ""]
    assert given.scores["relative_accuracy"] == pytest.approx(
        accuracies(given, LEARNED).mean() / 0.911
    )
    assert given.scores.keys() == {"relative_accuracy", "hlr", "lrs", "ior"}


def test_an_export_and_anything_of_its_form_is_judged_alike(result, whole, tmp_path):
    there = load_export(export(result, tmp_path / "out"))
    published: Any = types.SimpleNamespace(coreset=there.coreset, class_names=there.class_names)
    for held in (there, published, there.coreset):
        asked: Any = FEW | ({} if held is there else {"model": NETWORK})
        report = judge(held, TRAIN, TEST, key=jr.key(1), **asked)
        np.testing.assert_allclose(accuracies(report, HARD), accuracies(whole, HARD), atol=1e-6)
        known = report.protocol["bits_per_class"]
        assert known == (6368 if held is there else None)
        if held is not there:
            assert report[BITS].cells() == [BITS, "", "pass bits_per_class", ""]
    assert whole.protocol["training"]["network"]["width"] == 8  # as distilled


def test_networks_trained_together_are_the_same(result, whole, monkeypatch):
    """As on an accelerator, attacks included."""
    monkeypatch.setattr("rcig_eqx.evaluation._judge.networks_at_once", lambda count: count)
    asked = FEW | {"full": True, "epochs": 3, "attacked": 20}
    together = judge(result, TRAIN, TEST, key=jr.key(1), **asked)
    names = [row.trained_on for row in whole.rows]
    assert [row.trained_on for row in together.rows] == names
    for name in names:
        found = accuracies(together, name), accuracies(whole, name)
        np.testing.assert_allclose(*found, atol=1 / 20 + 1e-6)  # an image on the edge


def test_whitened_images_that_are_mirrored_are_judged_so():
    rng, labels = np.random.default_rng(0), np.arange(20) % 2
    train = Dataset.from_arrays(rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8), labels)
    preprocess = zca(train)
    start = real_coreset(train, 2, preprocess, flip=True, key=jr.key(0))
    coreset = dataclasses.replace(start, preprocess=preprocess)
    asked = FEW | {"steps": 50, "augment": "flip", "attacked": 10}
    model = convnet_for((8, 8, 3), 2, width=4, depth=1, softplus=None)
    report = judge(coreset, train, train, key=jr.key(1), model=model, **asked)
    alone = evaluate(
        coreset, train, key=jr.key(1), model=model, labels="hard", **BRIEF | {"steps": 50}
    )
    np.testing.assert_array_equal(accuracies(report, LEARNED), alone.accuracies)
    assert report.protocol["training"]["mirrored"]
    assert "Mirror images are trained on too, but not of all training data." in str(report)
    assert "Augmented by flip." in str(report)


def test_classes_are_matched_by_name(result, whole):
    order = [2, 0, 1]
    names = tuple(TRAIN.class_names[c] for c in order)
    number = np.argsort(order)
    train, test = (Dataset(s.images, number[s.labels], names) for s in (TRAIN, TEST))
    report = judge(result, train, test, key=jr.key(1), **FEW)
    for name in (LEARNED, HARD, RANDOM, CENTROIDS):
        np.testing.assert_array_equal(accuracies(report, name), accuracies(whole, name))


def test_a_set_on_disk_is_judged_as_the_one_in_memory(result, whole, tmp_path):
    sets = [data.write_records(s, tmp_path / str(len(s)), progress=False) for s in (TRAIN, TEST)]
    report = judge(result, *sets, key=jr.key(1), attacked=20, epochs=3, **BRIEF)
    assert json.dumps(report.to_json()["scores"]) == json.dumps(whole.to_json()["scores"])
    report = judge(result, *sets, key=jr.key(1), **FEW)  # a sample, which here are all
    for name in (LEARNED, RANDOM, BITS, CENTROIDS):
        np.testing.assert_array_equal(accuracies(report, name), accuracies(whole, name))


def test_inputs_that_are_no_images_are_neither_augmented_nor_attacked():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = (rng.normal(size=(40, 5)) + labels[:, None]).astype(np.float32)
    train = Dataset.from_arrays(rows, labels)
    preprocess = standardize(rows)
    start = real_coreset(train, 2, preprocess, key=jr.key(0))
    coreset = dataclasses.replace(start, preprocess=preprocess)
    report = judge(coreset, train, train, key=jr.key(1), bits_per_class=500, **BRIEF)
    assert report[BITS].images_per_class == 500 // (5 * 32 + 1) == 3
    assert report.scores.keys() == {"relative_accuracy", "hlr", "lrs", "ior"}
    assert report.protocol["attacks"] is None
    assert all(row.augmented is None for row in report.rows)
    with pytest.raises(ValueError, match="augment changes images"):
        judge(coreset, train, train, key=jr.key(1), augment=True, **BRIEF)


def test_the_table_is_text_markdown_html_and_json(whole, tmp_path):
    text, lines = str(whole), str(whole).splitlines()
    assert lines[0].split("  ")[0] == "trained on"
    values = accuracies(whole, LEARNED)
    cell = f"{values.mean():.2%} ± {values.std(ddof=1):.2%} (2)"
    assert lines[1].startswith(LEARNED)
    assert cell in lines[1]
    for part in (
        "ConvNet of width 8",
        "10 steps",
        "on 20 random test images",
        "3 epochs",
        "shirts",
    ):
        assert part in text
    assert repr(whole).startswith(f"Judgement({LEARNED} {cell}, ")
    assert repr(whole).count("\n") == 0
    markdown = whole.to_markdown()
    assert f"| {LEARNED} | 1 | {cell} | " in markdown
    assert f"| IOR | {whole.scores['ior']:.3f} |" in markdown
    assert f"<td>{cell}</td>" in whole._repr_html_()
    content = json.loads(whole.save(tmp_path / "judgement.json").read_text())
    assert content == json.loads(json.dumps(whole.to_json()))
    first = content["rows"][0]
    assert first["plain"]["accuracies"] == values.tolist()
    assert first["plain"]["std"] == pytest.approx(values.std(ddof=1))
    assert content["scores"] == whole.scores
    assert content["protocol"]["networks"] == 2
    assert content["protocol"]["training"]["steps"] == 10


def test_networks_that_had_not_converged_are_told(result):
    with pytest.warns(RuntimeWarning, match="After 2 steps .* networks had not converged"):
        report = judge(result, TRAIN, TEST, key=jr.key(1), **FEW | {"steps": 2})
    (note,) = report.notes
    assert note in str(report)
    assert LEARNED in note
    assert "steps=10" in note


def test_all_training_data_that_were_not_learned_are_told(result):
    asked = FEW | {"full": True, "epochs": 1}
    with pytest.warns(RuntimeWarning, match="After 1 epoch "):
        report = judge(result, TRAIN, TEST, key=jr.key(1), **asked)
    (note,) = (note for note in report.notes if "epoch" in note)
    assert note.startswith(f"After 1 epoch 2 networks had not converged ({FULL}): ")
    assert note.endswith("Pass epochs=5.")


def test_networks_that_diverge_are_told(result):
    asked = FEW | {"learning_rate": 1e30, "full": 0.9}
    with pytest.warns(RuntimeWarning, match=r"networks diverged .* learning_rate=1e\+30"):
        report = judge(result, TRAIN, TEST, key=jr.key(1), **asked)
    assert accuracies(report, LEARNED).max() == 0
    (note,) = report.notes
    assert note.startswith("10 networks diverged (distilled, learned labels; ")
    assert note in str(report)
    assert report.scores == {}


def test_scores_of_rows_that_diverged_are_left_out():
    """HLR and the relative accuracy stay where random images alone diverged."""

    def found(accuracy: float, loss: float = 0.0) -> Evaluation:
        each = np.array([accuracy])
        return Evaluation(each, each[:, None], ("a",), 1, losses=np.array([loss]))

    rows = {(LEARNED, False): found(0.6), (HARD, False): found(0.5), (FULL, False): found(0.8)}
    scores = _scores(rows | {(RANDOM, False): found(0.0, np.nan)}, True)
    assert scores == {"relative_accuracy": pytest.approx(0.75), "hlr": pytest.approx(0.3)}
    scores = _scores(rows | {(RANDOM, False): found(0.2), (FULL, False): found(0.0, np.inf)}, True)
    assert scores == {"ior": pytest.approx(0.4)}
    rows |= {(RANDOM, False): found(0.2)}
    assert _scores(rows, True).keys() == {"relative_accuracy", "hlr", "lrs", "ior"}


def test_networks_that_had_not_converged_are_told_by_their_steps():
    early = Evaluation(
        np.ones(1), np.ones((1, 1)), ("a",), 1, losses=np.ones(1), converged=np.array([False])
    )
    lengths = {LEARNED: 1000, RANDOM: 1000, BITS: 2000}
    kinds = [
        Kind(name, 1, [], Training(steps, 1e-4, 256, mean_squared, None))
        for name, steps in lengths.items()
    ]
    one, other = _unconverged(kinds, {(name, False): early for name in lengths}, 10)
    assert one.startswith(f"After 1,000 steps 2 networks had not converged ({LEARNED}; {RANDOM})")
    assert one.endswith("Pass steps=5000 or learning_rate=0.001.")
    assert other.startswith(f"After 2,000 steps 1 network had not converged ({BITS})")


# Losses and labels


def soft_cross_entropy(predictions, labels):
    return cross_entropy(predictions, jax.nn.softmax(labels))


@pytest.mark.parametrize("shift", [0.0, 1 / CLASSES])
def test_hard_labels_are_learned_by_cross_entropy(result, whole, shift):
    """As DC, MTT and RDED have them; one-hot − 1/C or one-hot."""
    labels = jnp.eye(CLASSES) - shift
    coreset = dataclasses.replace(result.coreset, labels=labels)
    asked = FEW | {"class_names": TRAIN.class_names, "model": NETWORK}
    report = judge(coreset, TRAIN, TEST, key=jr.key(1), **asked)
    by_hand = evaluate(
        coreset, TEST, key=jr.key(1), baseline=TRAIN, class_names=TRAIN.class_names, model=NETWORK,
        labels="hard", **BRIEF,
    )  # fmt: skip
    assert by_hand.baseline
    for name, wanted in ((LEARNED, by_hand), (HARD, by_hand), (RANDOM, by_hand.baseline)):
        np.testing.assert_array_equal(accuracies(report, name), wanted.accuracies)
    assert report.scores["ior"] == pytest.approx(by_hand.mean - by_hand.baseline.mean)
    assert report.protocol["labels"] == {"distilled": "one-hot", "real": "one-hot"}
    assert "Loss: mean over images of the softmax cross-entropy." in str(report)
    assert whole.protocol["labels"] == {"distilled": "learned", "real": "one-hot - 1/classes"}


def test_a_loss_is_that_of_the_set_and_of_random_images(result):
    """As of DATM's logits."""
    logits = dataclasses.replace(result.coreset, labels=9 * result.coreset.labels)
    asked = FEW | {"class_names": TRAIN.class_names, "model": NETWORK, "loss": soft_cross_entropy}
    report = judge(logits, TRAIN, TEST, key=jr.key(1), **asked)
    by_hand = evaluate(
        logits, TEST, key=jr.key(1), class_names=TRAIN.class_names, model=NETWORK, baseline=TRAIN,
        loss=soft_cross_entropy, **BRIEF,
    )  # fmt: skip
    np.testing.assert_array_equal(accuracies(report, LEARNED), by_hand.accuracies)
    asked = Asked(1, 1e-3, soft_cross_entropy)
    kinds = rows_of_size(logits, TRAIN, asked, 4 * 1570, 2, jr.key(1))
    for kind in kinds:
        learned = kind.name == LEARNED
        assert kind.training.loss is (cross_entropy if kind.name == HARD else soft_cross_entropy)
        for set_ in kind.sets:
            one_hot = set(np.unique(set_.labels)) == {0.0, 1.0}
            assert one_hot != learned
    for kind in rows_of_size(logits, TRAIN, Asked(1, 1e-3, mean_squared), None, 2, jr.key(1)):
        if kind.name in (RANDOM, CENTROIDS):
            for set_ in kind.sets:
                wanted = centered_labels(np.arange(CLASSES), CLASSES)
                np.testing.assert_array_equal(set_.labels, wanted)


# Attacked images, and what is read when


def test_attacked_images_are_of_all_classes_of_files_in_order(result):
    labels = np.repeat(np.arange(CLASSES), 100)
    images = np.repeat((80 * labels).astype(np.uint8)[:, None], 196, 1)
    test = Dataset(images.reshape(-1, 14, 14, 1), labels, TRAIN.class_names)
    found = _probe(result.coreset, test, labels, 90)
    assert isinstance(found, Robustness)
    assert np.bincount(found.labels).min() > 15
    values = np.rint(255 * np.asarray(found.pixels)[:, 0, 0, 0]).astype(int)
    np.testing.assert_array_equal(values, 80 * found.labels)  # each with its own label
    whole = _probe(result.coreset, test, labels, 10**6)
    np.testing.assert_array_equal(whole.labels, labels)


def test_test_images_that_cannot_be_read_are_told_before_any_clustering(result, monkeypatch):
    monkeypatch.setattr(
        "rcig_eqx.evaluation._judge.in_memory", lambda _: (_ for _ in ()).throw(OSError("unread"))
    )
    monkeypatch.setattr("rcig_eqx.evaluation._rows.kmeans", lambda: pytest.fail("clustered"))
    with pytest.raises(OSError, match="unread"):
        judge(result, TRAIN, TEST, key=jr.key(1), **FEW)


def test_numbers_of_numpy_are_saved(result, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook refuses them
    counts = {"num_networks": 2, "steps": 10, "epochs": 3, "attacked": 5, "bits_per_class": 6368}
    asked: Any = FEW | {name: np.int64(count) for name, count in counts.items()}
    asked |= {"learning_rate": np.float32(3e-3), "full": np.float32(0.5)}
    report = judge(result, TRAIN, TEST, key=jr.key(1), **asked)
    saved = json.loads(report.save(tmp_path / "judgement.json").read_text())
    assert saved["protocol"]["attacks"]["images"] == 5
    assert report[FULL].plain == [0.5]
    asked = FEW | {"full": np.False_}
    report = judge(result, TRAIN, TEST, key=jr.key(1), **asked)
    assert FULL not in {row.trained_on for row in report.rows}
    report = judge(result, TRAIN, TEST, key=jr.key(1), **FEW | {"full": np.True_, "epochs": 3})
    np.testing.assert_array_equal(accuracies(report, FULL), accuracies(whole, FULL))
    assert report.protocol["full"]["epochs"] == 3


@pytest.mark.parametrize(
    "network",
    [{"width": 2**16 + 1}, {"width": 0}, {"width": 8.0}, {"depth": 10**9}, {"growth": 99}, "wide"],
)
def test_networks_that_no_card_may_ask_for_are_refused(result, monkeypatch, tmp_path, network):
    """A card's checksum is of what its author wrote."""
    monkeypatch.setattr(_measure, "_train_and_test", lambda *_: pytest.fail("trained"))
    there = load_export(export(result, tmp_path / "out"))
    known = there.card["distillation"]["model"]
    there.card["distillation"]["model"] = known | network if isinstance(network, dict) else network
    with pytest.raises(ValueError, match=r"model is left out, and the (width|depth|growth)"):
        judge(there, TRAIN, TEST, key=jr.key(1), **FEW)


# Refused before any training

BARE = Coreset(jnp.zeros((3, 14, 14, 1)), jnp.eye(3), jnp.zeros(()))
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "networks": ({"num_networks": 0}, "num_networks is 0"),
    "steps": ({"steps": 0}, "steps is 0"),
    "epochs": ({"epochs": 0}, "epochs is 0"),
    "rate": ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    "attacked": ({"attacked": -1}, "attacked is -1"),
    "loss": ({"loss": "mse"}, "loss is 'mse': pass a function"),
    "a percentage": ({"full": 91.1}, "full is 91.1: it must be True, False or a fraction"),
    "bits": ({"bits_per_class": 0}, "bits_per_class is 0"),
    "augmentation": ({"augment": "flop"}, "did you mean 'flip'"),
    "names": ({"class_names": ["a", "b", "c"]}, "leave class_names out"),
    "no preprocessing": ({"distilled": BARE}, "does not carry its preprocessing"),
    "other test images": ({"test": (np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 2])}, "test images"),
    "other images": ({"train": (np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 2])}, "train has images"),
    "other classes": ({"train": TRAIN.subset([0, 1])}, "too few are there"),
    "no set": ({"train": TRAIN, "test": (np.zeros((2, 14, 14, 1), np.uint8),) * 2}, "labels"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_any_training(result, monkeypatch, name):
    changed, says = CASES[name]
    monkeypatch.setattr(_measure, "_train_and_test", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # else the hook tells
    given = {"distilled": result, "train": TRAIN, "test": TEST, "key": jr.key(1)} | changed
    with pytest.raises(ValueError, match=says):
        judge(**given)


def test_training_data_too_large_for_memory_are_refused(result, monkeypatch):
    monkeypatch.setattr(_measure, "_train_and_test", lambda *_: pytest.fail("trained"))
    size = 4 * TRAIN.images.size
    monkeypatch.setattr("rcig_eqx.evaluation._judge.available_memory", lambda: 3 * size - 1)
    with pytest.raises(ValueError, match=r"full is True, and 60 training images .* full=0\.9") as e:
        judge(result, TRAIN, TEST, key=jr.key(1), **BRIEF)
    assert e.value.argument == "full"  # pyright: ignore[reportAttributeAccessIssue]


# k-means


def test_centroids_are_the_means_of_clusters_and_start_a_run(result):
    preprocess = result.coreset.preprocess
    like = real_coreset(TRAIN, 1, preprocess, key=jr.key(0))
    found = kmeans()(TRAIN, like, preprocess, key=jr.key(1))
    images = np.asarray(preprocess(TRAIN.images))
    means = np.stack([images[TRAIN.labels == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(found.images, means, atol=1e-5)
    np.testing.assert_array_equal(found.labels, like.labels)
    many = real_coreset(TRAIN, 4, preprocess, key=jr.key(0))
    centers = np.asarray(kmeans()(TRAIN, many, preprocess, key=jr.key(1)).images)
    for c in range(CLASSES):  # each is the mean of the images that are nearest to it
        members = images[TRAIN.labels == c].reshape(20, -1)
        own = centers[4 * c : 4 * (c + 1)].reshape(4, -1)
        nearest = ((members[:, None] - own[None]) ** 2).sum(-1).argmin(1)
        for number, center in enumerate(own):
            np.testing.assert_allclose(center, members[nearest == number].mean(0), atol=1e-4)
    assert INITIALIZERS["kmeans"] is kmeans
    run = distill(
        TRAIN, images_per_class=1, key=jr.key(0), method=frepo(), model=NETWORK, batch_size=16,
        steps=1, initialization="kmeans", progress=False,
    )  # fmt: skip
    assert run.recipe["initialization"] == "kmeans"
    assert np.abs(run.last.images - means).max() < 0.1  # one step away


def test_classes_of_fewer_images_than_clusters_are_named(result):
    few = TRAIN.subset(np.flatnonzero(TRAIN.labels != 1)[:21])
    like = real_coreset(TRAIN, 2, result.coreset.preprocess, key=jr.key(0))
    with pytest.raises(ValueError, match=f"is 2, and {TRAIN.class_names[1]!r} has 0 images"):
        kmeans()(few, like, result.coreset.preprocess, key=jr.key(0))


@pytest.mark.usefixtures("without_scikit_learn")
def test_without_scikit_learn_the_extra_is_named(result):
    with pytest.raises(ImportError, match=r"rcig-eqx\[judge\]"):
        distill(TRAIN, images_per_class=1, key=jr.key(0), initialization="kmeans", steps=1)
    report = judge(result, TRAIN, TEST, key=jr.key(1), **FEW)
    assert report[CENTROIDS].plain is None
    assert "rcig-eqx[judge]" in report[CENTROIDS].cells()[2]
    assert "rcig-eqx[judge]" in str(report)
    assert report[RANDOM].plain is not None


def test_a_judgement_is_frozen(whole):
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.scores = {}
