"""A storage budget: what it holds is never exceeded, and what it chose is said."""

import jax.random as jr
import numpy as np
import pytest
from PIL import Image

import rcig_eqx
from rcig_eqx import PoolSchedule, Recipe, convnet_for, data
from rcig_eqx.methods import frepo
from rcig_eqx.parameterizations import (
    Bits,
    Cosine,
    Downsampled,
    LabelBits,
    Quantized,
    SharedBasis,
    compose,
    plain,
)
from rcig_eqx.parameterizations._budget import bits_allowed, bits_of, images_that_fit, spend

GRAY, COLOR = (28, 28, 1), (32, 32, 3)


@pytest.fixture(scope="module")
def train():
    return data.load("fashion_mnist_small", "train")


def distill(train, **options):
    model = convnet_for(train.image_shape, train.num_classes, width=8)
    given = {"key": jr.key(0), "model": model, "steps": 1, "method": frepo(), "batch_size": 64}
    return rcig_eqx.distill(train, progress=False, **given | options)


@pytest.mark.parametrize(
    ("storage", "shape", "bits"),
    [
        ("1 image per class", GRAY, 25_408),
        ("10 images per class", GRAY, 254_080),
        ("1 image per class", COLOR, 98_624),
        ("25_408 bits per class", GRAY, 25_408),
        (" 25,408 bits per class ", GRAY, 25_408),
        (Bits(25_408), COLOR, 25_408),
    ],
)
def test_a_budget_in_images_or_bits(storage, shape, bits):
    assert bits_allowed(storage, shape, 10) == bits


@pytest.mark.parametrize("storage", ["", "one image", "0 images per class", "12", "-1 bits"])
def test_what_states_no_budget_is_refused(train, storage):
    with pytest.raises(ValueError, match="storage is"):
        distill(train, storage=storage)


STORED = {
    "plain": plain(),
    "8 bits": compose(Quantized(8)),
    "compact": compose(Downsampled(2), Quantized(8), LabelBits(8)),
    "one bit": compose(Downsampled(3), Quantized(1), LabelBits(2, top_k=3)),
    "cosine": compose(Cosine(0.4), Quantized(4, per="number")),
    "basis": compose(SharedBasis(5), Quantized(8), LabelBits(8)),
}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("budget", [25_408, 100_000])
def test_one_more_image_would_not_fit(name, budget):
    stored = STORED[name]
    count = images_that_fit(stored, budget, GRAY, 10, at_most=1000)
    assert count >= 1
    assert bits_of(stored, count, GRAY, 10) <= 10 * budget
    assert bits_of(stored, count + 1, GRAY, 10) > 10 * budget


def test_a_run_keeps_to_its_budget_and_says_so(train, capsys):
    result = distill(train, storage="1 image per class")
    assert result.recipe["bits_per_class"] <= 25_408
    assert result.recipe["images_per_class"] == len(result.coreset.images) // 10 > 1
    said = result.recipe["storage"]
    assert f"{result.recipe['images_per_class']} images per class" in said
    assert "of 25,408 bits per class" in said
    assert len(result.baseline.images) == len(result.coreset.images)


@pytest.mark.parametrize(
    ("shape", "classes", "images", "available", "stored"),
    [
        (GRAY, 10, 1, 6000, "Downsampled(2) + Quantized(4, channel) + LabelBits(8)"),
        (GRAY, 10, 3, 6000, "Downsampled(2) + Quantized(8, channel) + LabelBits(8)"),
        (GRAY, 10, 10, 6000, "Quantized(8, channel) + LabelBits(8)"),
        (GRAY, 10, 1, 20, "Downsampled(2) + Quantized(8, channel) + LabelBits(8)"),
        ((32, 32, 3), 100, 1, 500, "Quantized(8, channel) + LabelBits(8, 5)"),
        ((14,), 2, 10, 500, "Quantized(4, channel) + LabelBits(8)"),
    ],
)
def test_a_larger_budget_is_spent_on_finer_images(shape, classes, images, available, stored):
    chosen, count = spend(f"{images} images per class", plain(), shape, classes, available)
    assert str(chosen) == stored
    assert 1 < count <= available
    assert count * classes <= 500


def test_a_parameterization_of_ones_own_is_kept(train):
    own = compose(Downsampled(4), Quantized(8))
    result = distill(train, storage=Bits(4_000), recipe=Recipe(parameterization=own))
    assert (
        result.recipe["images_per_class"]
        == images_that_fit(own, 4_000, GRAY, 10, at_most=1000)
        == 5
    )
    assert "Downsampled(4)" in result.recipe["storage"]


def test_no_more_images_than_the_smallest_class_has(train):
    few = train.subset(train.per_class(3, np.random.default_rng(0)))
    result = distill(few, storage="1 image per class", batch_size=16)
    assert result.recipe["images_per_class"] == 3


def test_a_set_on_disk_is_looked_at_again_for_a_larger_one(train, tmp_path):
    for i, (image, label) in enumerate(zip(train.images[:400], train.labels[:400], strict=True)):
        folder = tmp_path / f"class {label}"
        folder.mkdir(exist_ok=True)
        Image.fromarray((image[..., 0] * 255).astype(np.uint8)).save(folder / f"{i}.png")
    result = distill(data.ImageFolder(tmp_path), storage=Bits(25_408))
    assert result.recipe["images_per_class"] > 1
    assert result.recipe["bits_per_class"] <= 25_408


def test_a_basis_larger_than_one_image_per_class_fits(train):
    """Of 10 images there is no basis of 32; of more, that fit as well, there is."""
    own = Recipe(parameterization=compose(SharedBasis(32), Quantized(8), LabelBits(8)))
    result = distill(train, storage=Bits(60_000), recipe=own)
    assert result.recipe["images_per_class"] >= 4
    assert result.recipe["bits_per_class"] <= 60_000
    with pytest.raises(ValueError, match="rank is 32"):
        distill(train, storage=Bits(6_000), recipe=own)


def test_a_class_without_images_is_named(train):
    images, labels = train.images[:300], train.labels[:300]
    gone = data.Dataset(images[labels != 3], labels[labels != 3], train.class_names)
    with pytest.raises(ValueError, match="Dress"):
        distill(gone, storage="1 image per class", batch_size=16)


def test_too_small_a_budget_says_what_one_image_takes(train):
    with pytest.raises(ValueError, match=r"storage is 100 bits per class, and one image takes"):
        distill(train, storage=Bits(100))


def test_one_of_count_and_budget(train):
    with pytest.raises(ValueError, match="images_per_class is missing"):
        distill(train)
    with pytest.raises(ValueError, match="pass one of images_per_class and storage"):
        distill(train, images_per_class=1, storage=Bits(25_408))


def test_a_budget_resumes(train, tmp_path):
    whole = distill(train, storage=Bits(5_000), steps=3)
    distill(train, storage=Bits(5_000), steps=2, checkpoint_dir=tmp_path)
    again = distill(train, storage=Bits(5_000), steps=3, checkpoint_dir=tmp_path, resume=True)
    np.testing.assert_array_equal(again.coreset.images, whole.coreset.images)
    assert again.recipe["storage"] == whole.recipe["storage"]


def test_many_small_images_are_worked_on_a_part_at_a_time(train):
    """Unless asked otherwise: head only, 256 real images a step, 64 distilled ones in the pool."""
    chosen = distill(train, storage=Bits(5_000), method=None, batch_size=None).recipe
    assert (chosen["method"]["name"], chosen["batch_size"]) == ("Frepo", 256)
    assert chosen["pool"]["batch_size"] == 64
    asked = Recipe(pool=PoolSchedule(batch_size=7))
    kept = distill(train, storage=Bits(5_000), recipe=asked, batch_size=32).recipe
    assert (kept["batch_size"], kept["pool"]["batch_size"]) == (32, 7)
    plain = distill(train, images_per_class=1).recipe
    assert plain["pool"]["batch_size"] is None
