"""Classes of unequal size, and those with fewer images than are asked for."""

import warnings
from typing import Any

import grain
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import Recipe, _distill, distill, evaluate, initializers
from rcig_eqx.data import Dataset, standardize, write_records
from rcig_eqx.methods import frepo
from rcig_eqx.models import convnet_for

RNG = np.random.default_rng(0)
LABELS = np.array([0] * 28 + [1] * 10 + [2] * 2, np.int32)
IMAGES = (RNG.integers(0, 90, (40, 8, 8, 1)) + 80 * LABELS[:, None, None, None]).astype(np.uint8)
TRAIN = Dataset(IMAGES, LABELS, ("dark", "gray", "bright"), "shades")
RUN: dict[str, Any] = {
    "images_per_class": 2,
    "key": jr.key(0),
    "model": convnet_for((8, 8, 1), 3, width=2, depth=1),
    "method": frepo(),
    "steps": 3,
    "batch_size": 9,
}


def run(train: Any = TRAIN, **changed):
    return distill(train, **{**RUN, "progress": False, **changed})


@pytest.fixture
def batches(monkeypatch):
    """How many of each class every outer batch has."""
    counts: list[list[int]] = []
    stream = _distill.stream

    def counting(*arguments, **options):
        for images, labels in stream(*arguments, **options):
            counts.append(np.bincount(np.asarray(labels), minlength=3).tolist())
            yield images, labels

    monkeypatch.setattr(_distill, "stream", counting)
    return counts


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_unequal_classes_are_said_and_balanced(kind, batches, tmp_path, capsys):
    on_disk = kind == "disk"
    train = write_records(TRAIN, tmp_path / "x", progress=False) if on_disk else TRAIN
    result = run(train, progress=True)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "Classes have 2 (bright) to 28 (dark) images: outer batches have as many of each class."
        in said
    )
    assert batches[:3] == [[3, 3, 3]] * 3
    assert result.recipe["balanced"] is True


def test_an_argument_decides(batches, capsys):
    result = run(recipe=Recipe(balanced=False), progress=True)
    assert "images of all classes alike" in " ".join(capsys.readouterr().err.split())
    assert "balanced" not in result.recipe
    assert any(count != [3, 3, 3] for count in batches)
    equal = TRAIN.subset([*range(5), *range(28, 33), 38, 39])  # 5 : 5 : 2
    batches.clear()
    assert "balanced" not in run(equal, progress=True).recipe
    assert "Classes have" not in capsys.readouterr().err
    batches.clear()
    assert run(equal, recipe=Recipe(balanced=True)).recipe["balanced"] is True
    assert batches[:3] == [[3, 3, 3]] * 3


def test_a_grain_dataset_is_counted_and_not_balanced(capsys):
    pairs = grain.MapDataset.range(40).map(lambda i: (IMAGES[i], LABELS[i]))
    result = run(pairs, progress=True)
    assert "images of all classes alike" in " ".join(capsys.readouterr().err.split())
    assert "balanced" not in result.recipe


def test_a_grain_dataset_of_text_labels():
    names = np.array(TRAIN.class_names)
    pairs = grain.MapDataset.range(40).map(lambda i: (IMAGES[i], names[LABELS[i]]))
    assert run(pairs).class_names == ("bright", "dark", "gray")


def test_a_balanced_run_is_resumed_bit_for_bit(tmp_path):
    whole = run(steps=4, checkpoint_dir=tmp_path / "whole")
    run(steps=2, checkpoint_dir=tmp_path / "parts")
    resumed = run(steps=4, checkpoint_dir=tmp_path / "parts", resume=True)
    for name in ("images", "labels"):
        first, then = (np.asarray(getattr(r.last, name)) for r in (whole, resumed))
        assert first.tobytes() == then.tobytes()


def test_balanced_accuracy_is_beside_the_accuracy():
    brief: Any = {"key": jr.key(1), "num_networks": 2, "steps": 3, "progress": False}
    report = evaluate(run(), TRAIN, **brief)
    np.testing.assert_allclose(
        report.metrics["balanced_accuracy"], report.per_class.mean(1), atol=1e-6
    )
    assert "balanced_accuracy" in str(report)
    assert not evaluate(run(recipe=Recipe(balanced=False)), TRAIN, **brief).metrics


def test_a_class_with_too_few_images_gives_them_again():
    with pytest.warns(UserWarning, match=r"5 images of each class .* fewer of 'bright' \(2\)"):
        result = run(images_per_class=5, batch_size=9, steps=1)
    baseline = np.asarray(result.baseline.images).reshape(3, 5, -1)
    assert [len(np.unique(images, axis=0)) for images in baseline] == [5, 5, 2]
    preprocessed = np.asarray(standardize(TRAIN)(IMAGES[38:])).reshape(2, -1)
    np.testing.assert_allclose(
        np.unique(baseline[2], axis=0), np.unique(preprocessed, axis=0), atol=1e-6
    )
    learned = np.asarray(result.last.images).reshape(3, 5, -1)
    assert len(np.unique(learned[2], axis=0)) == 5  # alike, they would stay alike


def test_the_start_of_a_class_with_enough_images_is_real():
    preprocess = standardize(TRAIN)
    like = initializers.real_coreset(TRAIN, 5, preprocess, key=jr.key(0))
    start = initializers.INITIALIZERS["real"]()(TRAIN, like, preprocess, key=jr.key(1))
    different = (np.asarray(start.images) != np.asarray(like.images)).any((1, 2, 3))
    assert different.tolist() == [False] * 12 + [True] * 3
    assert np.abs(np.asarray(start.images - like.images)).max() < 1
    few = TRAIN.subset(range(38))  # the last class has none
    with pytest.raises(ValueError, match=r"too few are there of 'bright' \(0\)"):
        initializers.real_coreset(few, 5, preprocess, key=jr.key(0))


def test_random_images_of_a_small_class_are_compared_with_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(images_per_class=5, steps=1)
    brief: Any = {"key": jr.key(1), "num_networks": 1, "steps": 2, "progress": False}
    with pytest.warns(UserWarning, match=r"fewer of 'bright' \(2\)"):
        report = evaluate(result.coreset, TRAIN, baseline=TRAIN, **brief)
    assert report.baseline is not None
