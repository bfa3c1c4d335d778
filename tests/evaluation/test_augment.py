"""Each operation alone against what it must do, then strategies, seeds and shapes."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx.evaluation import Augment, paper_strategy
from rcig_eqx.evaluation._augment import OPERATIONS, as_augmentation

N, SIDE = 64, 16
IMAGES = jr.normal(jr.key(0), (N, SIDE, SIDE, 3))
ALL = "_".join(OPERATIONS)


def changed(strategy, images=IMAGES, seed=1, **options):
    return np.asarray(jax.jit(Augment(strategy, "all", **options))(images, key=jr.key(seed)))


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest():
    X, found = np.asarray(IMAGES), changed("flip")
    mirrored = (found == X[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == X).all((1, 2, 3))).all()
    assert 0.25 < mirrored.mean() < 0.75
    assert (changed("flip", flip=1.0) == X[:, :, ::-1]).all()


def test_crop_moves_by_whole_pixels_up_to_an_eighth():
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, big in zip(changed("crop"), padded, strict=True):
        moves = [(dy, dx) for dy in range(5) for dx in range(5)
                 if np.array_equal(image, big[dy : dy + SIDE, dx : dx + SIDE])]  # fmt: skip
        assert len(moves) == 1
        seen |= set(moves)
    assert len(seen) > 15  # of 25


# A smooth bump off the centre: where it goes says what was done to it.
GRID = jnp.stack(jnp.meshgrid(jnp.arange(33.0), jnp.arange(33.0), indexing="ij")) - 16
BUMP = jnp.exp(-((GRID[0] - 3) ** 2 + (GRID[1] + 5) ** 2) / 8)[None, :, :, None]
BUMPS = jnp.tile(BUMP, (N, 1, 1, 1))


def centres(images):
    weights = images[..., 0] / images[..., 0].sum((1, 2), keepdims=True)
    return np.stack([(weights * g).sum((1, 2)) for g in np.asarray(GRID)], axis=1)


def test_rotation_keeps_the_distance_to_the_centre():
    at = centres(changed("rotate", BUMPS))
    np.testing.assert_allclose(np.hypot(*at.T), np.hypot(3, 5), atol=0.05)
    turned = np.rad2deg(np.arctan2(*at.T) - np.arctan2(3, -5))
    turned = (turned + 180) % 360 - 180
    assert np.abs(turned).max() <= 15.1
    assert turned.min() < -10 < 10 < turned.max()


def test_translation_moves_by_fractions_up_to_an_eighth():
    moved = centres(changed("translate", BUMPS)) - [3, -5]
    assert np.abs(moved).max() <= 33 / 8 + 0.05
    assert np.abs(moved).max() > 3
    assert np.abs(moved - np.round(moved)).max() > 0.3


def test_scale_moves_each_axis_by_its_factor():
    factors = centres(changed("scale", BUMPS)) / [3, -5]
    assert factors.min() >= 1 / 1.2 - 0.02
    assert factors.max() <= 1.2 + 0.02
    assert np.std(factors[:, 0] - factors[:, 1]) > 0.05  # each side its own


def test_cutout_blanks_a_rectangle_of_half_the_side():
    ones = jnp.ones((N, SIDE, SIDE, 3))
    found = changed("cutout", ones)
    assert set(np.unique(found)) == {0.0, 1.0}
    hole = found[..., 0] == 0
    assert (found == found[..., :1]).all()  # all channels
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert (hole.sum((1, 2)) == rows * columns).all()
    assert rows.max() == SIDE // 2
    assert rows.min() >= SIDE // 4  # a centre at the border leaves half of it


def test_color_adds_to_all_pixels_and_scales_greys_and_colors():
    """x -> a + b gray(x) + c (x - gray(x)), with the numbers of each image in their ranges."""
    X, found = np.asarray(IMAGES), changed("color")
    gray = X.mean(3, keepdims=True)
    for x, g, f in zip(X, gray, found, strict=True):
        columns = np.stack([np.ones(x.size), np.broadcast_to(g, x.shape).ravel(), (x - g).ravel()])
        fit, residual, *_ = np.linalg.lstsq(columns.T, f.ravel(), rcond=None)
        assert residual < 1e-6
        added, contrast, color = fit
        assert abs(added) < 0.5 + abs(x.mean())  # contrast is about the image's mean
        assert 0.5 <= contrast <= 1.5
        assert 0 <= color / contrast <= 2


@pytest.mark.parametrize("channels", [1, 3])
def test_one_operation_a_batch_is_drawn_evenly(channels):
    """In mode "one" each batch is as if changed by one operation, and all of them occur."""
    images = IMAGES[..., :channels]
    augment = jax.jit(Augment("flip_cutout"))
    kinds = []
    for seed in range(40):
        found = np.asarray(augment(images, key=jr.key(seed)))
        blanked = ((found == 0) & (np.asarray(images) != 0)).any()
        kinds.append(blanked)
        if not blanked:
            X = np.asarray(images)
            assert all(np.array_equal(f, x) or np.array_equal(f, x[:, ::-1])
                       for f, x in zip(found, X, strict=True))  # fmt: skip
    assert 8 < sum(kinds) < 32


@pytest.mark.parametrize("mode", ["one", "all"])
def test_same_key_same_images_and_others_with_another(mode):
    augment = jax.jit(Augment(ALL, mode))
    first, again, other = (np.asarray(augment(IMAGES, key=jr.key(s))) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == IMAGES.shape
    assert first.dtype == IMAGES.dtype
    assert np.isfinite(first).all()


def test_what_moves_stays_within_the_range_of_pixels_and_zero():
    found = changed("flip_crop_rotate_scale_translate_cutout", jnp.clip(IMAGES, -1, 1))
    assert -1 <= found.min() <= found.max() <= 1


def test_paper_strategies():
    assert paper_strategy(1) == "crop_rotate_translate_cutout"
    assert paper_strategy(3) == "flip_color_crop_rotate_translate_cutout"
    assert as_augmentation(True, (8, 8, 1)) == Augment("crop_rotate_translate_cutout")
    assert as_augmentation(None, (8, 8, 3)) is as_augmentation(False, (8, 8, 3)) is None


def test_types_are_never_promoted():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = jax.jit(Augment(ALL, "all"))(IMAGES, key=jr.key(0))
    assert found.dtype == IMAGES.dtype


def test_an_operation_twice_is_refused():
    with pytest.raises(ValueError, match="'flip' twice"):
        Augment("flip_crop_flip")


def test_an_unknown_operation_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'color'"):
        Augment("flip_colour")
