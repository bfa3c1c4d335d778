"""Each operation alone against what it must do, then strategies, seeds and shapes; then what
distills under one."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from rcig_eqx import Coreset, PoolSchedule, Recipe, convnet_for, distill, init
from rcig_eqx._algorithm import draw, move, on_set
from rcig_eqx._augment import OPERATIONS, as_augmentation
from rcig_eqx.evaluation import Augment, paper_strategy
from rcig_eqx.methods import frepo, rcig, staged
from rcig_eqx.run._guard import guarded_move
from rcig_eqx.run._step import tune

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


# Siamese, and distilling


@pytest.mark.parametrize("mode", ["one", "all"])
def test_siamese_images_change_alike_in_every_call_of_a_key(mode):
    augment, same = Augment(ALL, mode, siamese=True), jnp.tile(IMAGES[:1], (5, 1, 1, 1))
    found = np.asarray(augment(same, key=jr.key(2)))
    np.testing.assert_allclose(found, np.repeat(found[:1], 5, 0), atol=1e-6)
    few = np.asarray(augment(IMAGES[:3], key=jr.key(2)))  # another call, of another size
    many = np.asarray(augment(IMAGES, key=jr.key(2)))
    np.testing.assert_allclose(few, many[:3], atol=1e-6)
    apart = np.asarray(Augment(ALL, "all")(same, key=jr.key(2)))
    assert np.abs(apart[0] - apart[1]).max() > 0.1


NETWORK = convnet_for((8, 8, 1), 2, width=2, depth=1)
SMALL = jr.normal(jr.key(7), (12, 8, 8, 1))
SET = Coreset(SMALL[:4], jnp.eye(2)[jnp.arange(4) % 2] - 0.5, jnp.asarray(0.1))
BATCH = SMALL[4:], jnp.arange(8) % 2
STILL: dict[str, Any] = {
    "optimizer": optax.sgd(1.0),
    "pool": PoolSchedule(size=2, min_visit=1, max_visit=1),
}


def slid(images, *, key):
    """A random part of each image, moved down: linear, and no symmetry of a network."""
    part = jr.uniform(key, (), minval=0.3, maxval=0.7)
    return images + part * jnp.roll(images, 2, axis=1)


def slid_back(gradient, key):
    """The transpose."""
    part = jr.uniform(key, (), minval=0.3, maxval=0.7)
    return gradient + part * jnp.roll(gradient, -2, axis=1)


@pytest.mark.parametrize("moved_by", [move, guarded_move])
@pytest.mark.parametrize("method", [frepo(), rcig()], ids=["frepo", "rcig"])
def test_the_hypergradient_goes_through_the_augmentation(method, moved_by):
    """Of the augmented set at the augmented batch, then through the transpose of the change."""
    state = init(SET, Recipe(method, NETWORK, augment=slid, **STILL), key=jr.key(0))
    drawn = draw(state, BATCH)
    np.testing.assert_allclose(drawn.inputs, slid(BATCH[0], key=drawn.augment_key), rtol=1e-6)
    seen = dataclasses.replace(SET, images=slid(SET.images, key=drawn.augment_key))
    targets = jax.nn.one_hot(BATCH[1], 2)
    model = on_set(drawn.member.model, seen)
    alone = method.hypergradient(model, seen, drawn.inputs, targets, key=drawn.key)
    moved = moved_by(state, drawn)
    wanted = slid_back(alone.gradient.images, drawn.augment_key)
    np.testing.assert_allclose(SET.images - moved.psi.images, wanted, atol=1e-5)
    np.testing.assert_allclose(SET.labels - moved.psi.labels, alone.gradient.labels, atol=1e-5)
    assert np.abs(wanted).max() > 1e-3
    assert np.abs(wanted - alone.gradient.images).max() > 1e-3
    np.testing.assert_allclose(moved.result.value, alone.value, rtol=1e-5)


def test_steps_have_changes_of_their_own_and_without_one_nothing_changes():
    plain = init(SET, Recipe(frepo(), NETWORK, **STILL), key=jr.key(0))
    state = init(SET, Recipe(frepo(), NETWORK, augment=slid, **STILL), key=jr.key(0))
    later = eqx.tree_at(lambda s: s.step, state, state.step + 1)
    first, again, other, none = (draw(s, BATCH) for s in (state, state, later, plain))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert np.abs(first.inputs - other.inputs).max() > 1e-3
    np.testing.assert_array_equal(none.inputs, BATCH[0])
    for name in ("place", "key", "visit_key"):  # what else is drawn stays
        a, b = getattr(first, name), getattr(none, name)
        assert jnp.all(a == b)


def test_tuning_is_on_the_augmented_problem():
    seen = []

    class Watching(type(frepo())):
        @property
        def adapts(self):
            return True

        def tune(self, model, coreset, inputs, targets, /):
            seen.append((coreset.images, inputs))
            return self

    state = init(SET, Recipe(Watching(), NETWORK, augment=slid, **STILL), key=jr.key(0))
    tune(state, BATCH)
    key = draw(state, BATCH).augment_key
    np.testing.assert_allclose(seen[0][0], slid(SET.images, key=key), rtol=1e-6)
    np.testing.assert_allclose(seen[0][1], slid(BATCH[0], key=key), rtol=1e-6)


PIXELS = (
    np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1)).astype(np.uint8),
    np.arange(24) % 2,
)
FREPO = frepo()
traced: list[int] = []


def counted(images, *, key):
    traced.append(len(images))
    return Augment("crop_rotate_cutout", siamese=True)(images, key=key)


def run(steps=4, augment: Any = "crop_cutout", method: Any = FREPO, **changed: Any) -> Any:
    recipe = Recipe(method, NETWORK, pool=STILL["pool"], augment=augment)
    return distill(
        PIXELS, images_per_class=2, key=jr.key(0), steps=steps, recipe=recipe, batch_size=8,
        progress=False, **changed,
    )  # fmt: skip


def test_a_run_compiles_once_and_says_what_it_did():
    result = run(2, augment=counted)
    once = list(traced)
    assert {4, 8} <= set(once)
    longer = run(5, augment=counted)
    assert len(traced) < 2 * len(once) + 4  # the dry run again at most, and no step
    assert result.recipe["augment"] == "counted"
    plain = run(5, augment=None)
    assert "augment" not in plain.recipe
    assert not np.array_equal(longer.last.images, plain.last.images)


def test_a_run_goes_on_bit_for_bit(tmp_path):
    both: dict[str, Any] = {"method": staged(frepo(), rcig(), 2)}
    whole = run(**both)
    run(callbacks=[lambda progress: progress.step == 3], checkpoint_dir=tmp_path, **both)
    with pytest.raises(ValueError, match=r"one: augment: .*crop_cutout.* there, .*crop_flip"):
        run(checkpoint_dir=tmp_path, resume=True, augment="crop_flip", **both)
    with pytest.raises(ValueError, match=r"one: augment: .* there, None here"):
        run(checkpoint_dir=tmp_path, resume=True, augment=None, **both)
    resumed = run(checkpoint_dir=tmp_path, resume=True, **both)
    assert np.asarray(resumed.last.images).tobytes() == np.asarray(whole.last.images).tobytes()
    assert resumed.recipe == whole.recipe


def test_true_is_the_papers_augmentation_and_an_instance_is_told_whole():
    state = init(SET, Recipe(FREPO, NETWORK, augment=True), key=jr.key(0))
    assert state.recipe.augment == Augment("crop_rotate_translate_cutout")
    told = run(1, augment=Augment("flip", siamese=True)).recipe["augment"]
    assert "strategy='flip'" in told
    assert "siamese=True" in told


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ("flop", "augmentation is 'flop': did you mean 'flip'"),
        (lambda images: images, "augment cannot be called"),
        (lambda images, *, key: images[:, :4], r"augment made float32 \(4, 4, 8, 1\) of float32"),
        (lambda images, *, key: None, "augment made None None of"),
    ],
)
def test_what_is_no_augmentation_is_refused_before_any_work(augment, said, monkeypatch):
    monkeypatch.setattr("rcig_eqx._distill.init", lambda *_, **__: pytest.fail("began"))
    with pytest.raises(ValueError, match=said):
        run(augment=augment)


@pytest.mark.parametrize("augment", [True, "flip", Augment("crop")])
def test_rows_of_a_table_are_not_augmented(augment):
    rows = np.random.default_rng(0).normal(size=(20, 5)), np.arange(20) % 2
    with pytest.raises(ValueError, match=r"changes images \[h w c\], and each input is \[5"):
        distill(rows, images_per_class=1, key=jr.key(0), recipe=Recipe(augment=augment))
