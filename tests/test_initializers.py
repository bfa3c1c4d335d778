"""Where a distilled set starts: hand-computed cases, and the same by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import Coreset, convnet_for, distill
from rcig_eqx.data import Dataset, standardize
from rcig_eqx.initializers import INITIALIZERS, herding, mean
from rcig_eqx.initializers._herding import herd
from rcig_eqx.methods import frepo
from rcig_eqx.models import Head, Network

# Two classes of rows: a line of five points, and of three.
LINE = np.array([[0.0], [1.0], [2.0], [4.0], [8.0], [-3.0], [0.0], [30.0]], np.float32)
ROWS = np.concatenate([LINE, np.zeros_like(LINE)], 1)
LABELS = np.array([0] * 5 + [1] * 3)
TRAIN = Dataset(ROWS, LABELS, ("short", "long"))
AS_IT_IS = eqx.tree_at(
    lambda p: (p.mean, p.std), standardize(ROWS), (jnp.zeros(2), jnp.ones(2))
)  # to compute by hand


def like(each: int) -> Coreset:
    """The first rows of each class."""
    first = np.concatenate([np.flatnonzero(label == LABELS)[:each] for label in (0, 1)])
    return Coreset(jnp.asarray(ROWS[first]), jnp.eye(2)[LABELS[first]], jnp.zeros(()))


def started(initializer, each):
    made = initializer(TRAIN, like(each), AS_IT_IS, key=jr.key(0))
    np.testing.assert_array_equal(made.labels, like(each).labels)
    return np.asarray(made.images)


def test_herding_picks_what_brings_the_mean_closest():
    """Means 3 and 9. From 3: 2, nearest (4 is as near, and later); 2 + 4 make 3 exactly; then three
    of sum 9 need 3 more, and 1 is 2 short, as 8 is too many. From 9: 0, then 18 wanted and 30 is
    nearer than -3."""
    np.testing.assert_array_equal(started(herding(), 1)[:, 0], [2, 0])
    np.testing.assert_array_equal(started(herding(), 3)[:, 0], [2, 4, 1, 0, 30, -3])


def test_herding_takes_no_image_twice_and_is_greedy():
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    picked = herd(features, 30)
    assert sorted(picked) == list(range(30))
    for k in range(20):
        rest = [i for i in range(30) if i not in picked[:k]]
        means = [np.mean(features[[*picked[:k], i]], 0) for i in rest]
        gaps = np.linalg.norm(np.array(means) - features.mean(0), axis=1)
        np.testing.assert_allclose(gaps[rest.index(picked[k])], gaps.min(), rtol=1e-4)


class Folded(eqx.Module):
    """|x − 3|: a body whose features a test knows."""

    def __call__(self, x):
        return jnp.abs(x - 3)


def folded(key):
    return Network(Folded(), Head(2, 2, key=key))


def test_herding_by_a_networks_features():
    """Features 3, 2, 1, 1, 5 of mean 2.4: the second is the nearest."""
    assert started(herding(folded), 1)[0, 0] == 1


def test_means_come_first_and_variants_lie_towards_real_images():
    np.testing.assert_allclose(started(mean(), 1)[:, 0], [3, 9])
    first, second, third = started(mean(spread=0.25), 3)[:3, 0]
    np.testing.assert_allclose([first, second, third], [3, 3 - 0.5, 3 - 0.25])  # of 1 and 2


def test_variants_of_a_mean_by_an_augmentation():
    def shifted(inputs, *, key):
        return inputs + jr.normal(key, inputs.shape)

    found = started(mean(augment=shifted), 2)
    noise = jr.normal(jr.key(0), (4, 2))
    np.testing.assert_allclose(found[[0, 2], 0], [3, 9])
    moved = np.array([[3, 0], [9, 0]]) + np.asarray(noise)[1::2]
    np.testing.assert_allclose(found[1::2], moved, rtol=1e-5)


@pytest.mark.parametrize("name", ["herding", "mean"])
def test_a_run_starts_there_by_name(name):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
    train = Dataset(images, np.arange(24) % 2, ("a", "b"))
    still = distill(
        train, images_per_class=3, key=jr.key(0), steps=1, initialization=name, method=frepo(),
        model=convnet_for((8, 8, 1), 2, width=2, depth=1), batch_size=8, progress=False,
    )  # fmt: skip
    preprocess = still.coreset.preprocess
    assert preprocess is not None
    real = np.asarray(preprocess(images))
    first = INITIALIZERS[name]()(train, still.baseline, preprocess, key=jr.key(5)).images
    near = np.abs(np.asarray(still.last.images) - first).max()
    assert near < 0.1  # one step away
    first = np.asarray(first)
    from_real = np.abs(real[:, None] - first[None]).max((2, 3, 4)).min(0)
    if name == "mean":
        np.testing.assert_allclose(first[::3], [real[c::2].mean(0) for c in (0, 1)], atol=1e-5)
        assert (from_real > 0.1).all()
        assert np.abs(first[1] - first[2]).max() > 0.1
    else:
        assert (from_real < 1e-5).all()
    assert still.recipe["initialization"] == name


@pytest.mark.parametrize("make", [herding, mean])
def test_a_class_of_too_few_images_is_named(make):
    with pytest.raises(ValueError, match="is 4, and 'long' has 3 images to start from"):
        make()(TRAIN, Coreset(jnp.zeros((8, 2)), jnp.zeros((8, 2)), jnp.zeros(())), AS_IT_IS,
               key=jr.key(0))  # fmt: skip


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"spread is 0\.0: it must be in"):
        mean(spread=0.0)


def test_starts_are_the_same_for_the_same_key():
    a, b = (jax.tree.leaves(started(mean(), 3)) for _ in range(2))
    np.testing.assert_array_equal(a[0], b[0])
