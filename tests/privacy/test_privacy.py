"""Membership inference: on a planted leak, and on none, every attack says what it must."""

import functools
import json
import math
from statistics import NormalDist
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import Coreset, convnet_for, data, privacy
from rcig_eqx.evaluation import train_network
from rcig_eqx.initializers import real_coreset
from rcig_eqx.privacy import Observations, Shadows, Threshold

PHI = NormalDist().cdf
KEY = jr.key(0)
ATTACKS = {attack.name: attack for attack in privacy.all_attacks()}


def gaussians(n: int, d: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose area is Φ(d / √2)."""
    rng = np.random.default_rng(seed)
    return rng.normal(d, 1, n), rng.normal(0, 1, n)


# The area and the curve


def test_an_area_and_a_curve_by_hand():
    members, others = np.array([4.0, 3.0, 2.0, 1.0]), np.array([3.5, 2.5, 1.0, 0.0])
    area = privacy.auc(members, others)
    assert area.value == (4 + 3 + 2 + 1.5) / 16  # each member's others below, a tie as a half
    curve = privacy.roc(members, others)
    assert curve.area == area.value
    np.testing.assert_array_equal(curve.fpr, [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 1])
    np.testing.assert_array_equal(curve.tpr, [0, 0.25, 0.25, 0.5, 0.5, 0.75, 1, 1])
    assert [curve.tpr_at(f) for f in (0.25, 0.3, 0.5, 0.75, 1.0)] == [0.5, 0.5, 0.75, 1, 1]
    assert curve.smallest_fpr == 0.25
    assert math.isnan(curve.tpr_at(0.2))


@pytest.mark.parametrize("d", [0.0, 0.5, 1.0, 2.0])
def test_two_gaussians_have_their_area(d):
    members, others = gaussians(4000, d)
    area = privacy.auc(members, others)
    assert abs(area.value - PHI(d / 2**0.5)) < 3 * area.error
    assert area.error < 0.007
    assert privacy.roc(members, others).area == pytest.approx(area.value, abs=1e-12)
    z = NormalDist().inv_cdf(0.99)
    exact, slope = PHI(d - z), math.exp(z * d - d**2 / 2)  # of the curve there
    error = ((exact * (1 - exact) + slope**2 * 0.01 * 0.99) / 4000) ** 0.5
    assert abs(privacy.roc(members, others).tpr_at(0.01) - exact) < 3 * error


@pytest.mark.parametrize("d", [0.0, 1.0])
def test_intervals_cover(d):
    trials, truth = 400, PHI(d / 2**0.5)
    intervals = [privacy.auc(*gaussians(80, d, seed)).interval() for seed in range(trials)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert abs(covered - 0.95) < 3 * (0.95 * 0.05 / trials) ** 0.5


# The five attacks


def observed(loss, logits) -> Observations:
    return Observations(np.asarray(logits), np.asarray(loss))


def planted(n: int, d: float, seed: int = 0) -> tuple[Observations, Observations]:
    """Losses lower by d standard deviations, and logits that say nothing."""
    rng = np.random.default_rng(seed)
    members, others = (observed(-x, rng.normal(size=(n, 2))) for x in gaussians(n, d, seed + 1))
    return members, others


@pytest.mark.parametrize("name", ATTACKS)
def test_a_planted_leak_is_found(name):
    area = ATTACKS[name](*planted(1000, 2.0), key=KEY)
    best = PHI(2.0 / 2**0.5)  # no attack on average beats the likelihood ratio, here the loss
    assert area.value < best + 3 * area.error
    assert area.value - 0.5 > 0.9 * (best - 0.5)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_leak_is_none(name):
    area = ATTACKS[name](*planted(1000, 0.0, seed=3), key=KEY)
    low, high = area.interval(0.99)
    assert low < 0.5 < high
    assert area.error < 0.02


def test_a_leak_that_is_not_in_the_loss():
    """Logits of members vary twice as much: no threshold and no plane tells, the others do."""
    rng = np.random.default_rng(0)
    sides = [observed(rng.normal(size=1000), s * rng.normal(size=(1000, 2))) for s in (2, 1)]
    areas = {name: attack(*sides, key=KEY) for name, attack in ATTACKS.items()}
    found = {name for name, area in areas.items() if area.interval(0.999)[0] > 0.5}
    assert found == {"MLP", "RF", "KNN"}
    # |x|² / σ² is exponential: P(4a > b) = 4/5 for the best, which is the area.
    assert all(0.7 < areas[name].value < 0.8 + 3 * areas[name].error for name in found)


def test_intervals_of_trained_attacks_cover():
    """Each half's attacker was trained on the other's images, which does not narrow them."""
    attack, trials = ATTACKS["LR"], 120
    areas = [attack(*planted(60, 0.0, seed), key=jr.key(seed)) for seed in range(trials)]
    covered = [low <= 0.5 <= high for low, high in (area.interval() for area in areas)]
    assert np.mean(covered) > 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5
    values = [area.value for area in areas]
    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / trials**0.5


def test_the_larger_side_is_drawn_from():
    members, others = planted(300, 2.0)
    few = others.take(np.arange(100))
    for side in ((members, few), (few, members)):
        for scores in ATTACKS["LR"].scores(*side, key=KEY):
            assert [len(s) for s in scores] == [50, 50]


@pytest.mark.parametrize("name", ATTACKS)
def test_same_key_same_numbers(name):
    sides = planted(60, 1.0)
    assert ATTACKS[name](*sides, key=KEY) == ATTACKS[name](*sides, key=KEY)


# The likelihood-ratio attack


def shadows(d: float, networks: int, images: int = 600, seed: int = 0) -> Shadows:
    """φ ~ N(μ_i + d inside, 1), where images differ in μ_i ~ N(0, 9)."""
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(images) < images // 2 for _ in range(networks // 2)]
    inside = np.stack([side for half in halves for side in (half, ~half)])
    noise = rng.normal(size=inside.shape) + 3 * rng.normal(size=images)
    return Shadows(noise + d * inside, inside)


@pytest.mark.parametrize("offline", [False, True])
def test_the_ratio_finds_what_a_threshold_does_not(offline):
    d = 2.0
    made = shadows(d, 64, images=300)
    report = privacy.lira(made, offline=offline, key=KEY)
    best, plain = PHI(d / 2**0.5), PHI(d / (2 * 10) ** 0.5)  # with μ_i known, and with none
    assert best - 0.01 < report.auc.value < best + 3 * report.auc.error
    threshold = privacy.auc(made.confidence[made.inside], made.confidence[~made.inside])
    assert abs(threshold.value - plain) < 0.05
    tpr, error = report.tpr[0.01]
    exact = PHI(d - NormalDist().inv_cdf(0.99))
    assert exact - 0.05 < tpr < exact + 3 * error


@pytest.mark.parametrize("networks", [6, 16])
@pytest.mark.parametrize("offline", [False, True])
def test_the_ratio_finds_nothing_where_nothing_is(offline, networks):
    report = privacy.lira(shadows(0.0, networks, images=2000), offline=offline, key=KEY)
    assert abs(report.auc.value - 0.5) < 3 * report.auc.error
    for fpr, (tpr, error) in report.tpr.items():
        assert abs(tpr - fpr) < 3 * error
    assert report.auc.error < 0.02


def test_rates_that_few_images_cannot_show_are_left_out():
    report = privacy.lira(shadows(1.0, 6, images=100), key=KEY)
    assert report.curve.smallest_fpr == 1 / 300
    assert math.isnan(report.tpr[0.001][0])
    assert not math.isnan(report.tpr[0.01][0])
    assert "too few images" in str(report)
    tpr = json.loads(json.dumps(report.to_json(), allow_nan=False))["tpr"]
    assert [rate["fpr"] for rate in tpr] == [0.001, 0.01]
    assert tpr[0]["value"] is None


def test_the_ratio_by_hand():
    confidence = np.array([[1.0], [3.0], [-2.0], [-4.0]])
    made = Shadows(confidence, np.array([[True], [True], [False], [False]]))
    ratio = privacy.likelihood_ratio(np.array([0.0]), made, fixed_variance=False)
    # means 2 and -3, variances 2: ((0+3)² - (0-2)²) / 4
    np.testing.assert_allclose(ratio, [5 / 4])
    offline = privacy.likelihood_ratio(np.array([0.0]), made, offline=True)
    np.testing.assert_allclose(offline, [3 / 2**0.5])


def test_confidence_keeps_its_digits():
    logits = jnp.array([[200.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    got = privacy.confidence(logits, jnp.array([0, 1]))
    p = np.exp(2) / np.exp([1, 2, 3]).sum()
    np.testing.assert_allclose(got, [200 - math.log(2), math.log(p / (1 - p))], rtol=1e-5)


# Networks


@functools.cache
def noise(n: int = 48, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise with random labels: all that a network can do is remember them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
    return images, rng.integers(0, classes, n)


MODEL = convnet_for((8, 8, 1), 4, width=16, depth=1, softplus=None)
TINY = convnet_for((8, 8, 1), 4, width=2, depth=1, softplus=None)


def test_networks_that_memorize_are_caught_and_those_that_do_not_are_not():
    images, labels = noise()
    preprocess = data.standardize(images)
    train = privacy.train_on(MODEL, preprocess, steps=150, learning_rate=1e-2)
    made = privacy.train_shadows(train, images, labels, key=KEY, num_shadows=8, progress=False)
    assert made.inside.sum(1).tolist() == [24] * 8
    assert made.inside.sum(0).tolist() == [4] * 48
    report = privacy.lira(made, key=KEY)
    assert report.auc.interval(0.999)[0] > 0.9

    def fresh(images, labels, key):
        return privacy.Preprocessed(MODEL(key), preprocess)

    made = privacy.train_shadows(fresh, images, labels, key=KEY, num_shadows=8, progress=False)
    report = privacy.lira(made, key=KEY)
    low, high = report.auc.interval(0.999)
    assert low < 0.5 < high


def test_preprocessing_is_no_constant_of_the_program():
    images, labels = noise()
    train = privacy.train_on(TINY, data.zca(images), steps=2)
    traced = eqx.filter_make_jaxpr(lambda train, x, y: train(x, y, KEY)(x))(train, images, labels)
    assert max(np.size(c) for c in traced[0].consts) < 64 * 64 / 2


def test_shadows_together_one_by_one_and_outside_jit_are_the_same():
    images, labels = noise()
    train = privacy.train_on(TINY, data.standardize(images), steps=5, learning_rate=1e-2)
    ways = [
        (train, {"at_once": 1}),
        (train, {"at_once": 3}),
        (eqx.filter_jit(train), {"jit": False}),
    ]
    one, *rest = (
        privacy.train_shadows(f, images, labels, key=KEY, num_shadows=6, progress=False, **way)
        for f, way in ways
    )
    for other in rest:
        np.testing.assert_array_equal(other.inside, one.inside)
        np.testing.assert_allclose(other.confidence, one.confidence, atol=1e-4)


def test_distilling_is_a_procedure_as_well():
    """Here with random real images in the place of distilled ones."""
    images, labels = noise()

    def distill(images, labels, key) -> Coreset:
        pool = data.Dataset(images, labels, ("0", "1", "2", "3"))
        coreset = real_coreset(pool, 1, data.Identity(), key=key)
        return eqx.tree_at(lambda c: c.preprocess, coreset, data.Identity(), is_leaf=_is_none)

    train = privacy.distill_then_train(distill, TINY, steps=5, learning_rate=1e-2)
    args = (train, images, labels)
    made = privacy.train_shadows(*args, key=KEY, num_shadows=6, jit=False, progress=False)
    assert np.isfinite(made.confidence).all()
    numpy_only: Any = lambda images, labels, key: np.asarray(images)  # noqa: E731
    for cannot in (train, numpy_only):
        with pytest.raises(ValueError, match="pass jit=False"):
            privacy.train_shadows(cannot, *args[1:], key=KEY, num_shadows=6, progress=False)


def _is_none(x):
    return x is None


def test_the_last_snapshot_is_the_trained_network():
    images, labels = noise()
    x = data.standardize(images)(images)
    y = jax.nn.one_hot(labels, 4)
    options = {"learning_rate": 1e-2, "batch_size": 16, "key": jr.key(2)}
    some = eqx.filter_jit(privacy.train_with_snapshots)(TINY(KEY), x, y, at=(2, 7), **options)
    whole = eqx.filter_jit(train_network)(TINY(KEY), x, y, steps=7, **options)
    for stacked, last in zip(
        jax.tree.leaves(eqx.filter(some, eqx.is_array)),
        jax.tree.leaves(eqx.filter(whole, eqx.is_array)),
        strict=True,
    ):
        assert stacked.shape == (2, *last.shape)
        np.testing.assert_allclose(stacked[1], last, atol=1e-6)
        assert not np.allclose(stacked[0], last, atol=1e-6)


# Along training


@functools.cache
def fashion(n: int = 200) -> tuple[data.Dataset, data.Dataset]:
    """Real images, every other pixel of every other row."""
    sets = []
    for split, count in (("train", n), ("test", 2 * n)):
        whole = data.load("fashion_mnist_small", split)
        images = np.ascontiguousarray(whole.images[:count, ::2, ::2])
        sets.append(data.Dataset(images, whole.labels[:count], whole.class_names))
    return sets[0], sets[1]


@functools.cache
def along() -> privacy.PrivacyReport:
    train, test = fashion()
    return privacy.membership_inference(
        {"real": train, "subset": train.subset(np.arange(20))},
        train,
        test,
        key=KEY,
        attacks=[Threshold(), privacy.logistic_regression()],
        model=convnet_for((14, 14, 1), 10, width=8, depth=1, softplus=None),
        at=(10, 300),
        num_networks=2,
        learning_rate=1e-2,
        batch_size=50,
        progress=False,
    )


def test_an_overtrained_network_leaks_and_a_subset_gives_away_no_more_than_itself():
    report = along()
    (early, late), (_, some) = (
        report.curves[name].mean_auc("threshold") for name in ("real", "subset")
    )
    assert late.interval(0.999)[0] > 0.8 > early.value
    # 20 of 200 members are in the subset: at most 1/2 + 20 / (2 · 200).
    assert 0.5 < some.value < 0.55 + 3 * some.error
    assert (
        report.curves["real"].accuracy[:, 1].mean() > report.curves["subset"].accuracy[:, 1].max()
    )


def test_networks_together_are_the_same():
    whole = data.Dataset.from_arrays(*noise())
    train, test = (whole.subset(np.arange(a, b)) for a, b in ((0, 20), (20, 48)))
    options = {
        "attacks": [Threshold()],
        "model": TINY,
        "at": (2, 4),
        "num_networks": 2,
        "progress": False,
    }
    one, two = (
        privacy.membership_inference(
            {"real": train}, train, test, key=KEY, at_once=at_once, **options
        ).curves["real"]
        for at_once in (1, 2)
    )
    np.testing.assert_allclose(one.auc["threshold"], two.auc["threshold"], atol=1e-3)


def test_a_report_as_text_json_and_picture(tmp_path):
    report = along()
    text = str(report)
    assert text.startswith("after 300 steps; 2 networks each; 200 members, 400 others")
    assert len({len(line) for line in text.splitlines()[1:]}) == 1
    said = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert said["steps"] == [10, 300]
    assert said["settings"]["trained_on"] == {"real": 200, "subset": 20}
    assert np.shape(said["curves"]["real"]["auc"]["LR"]) == (2, 2)
    path = privacy.save_curves(report, tmp_path / "curves.png", attack="LR")
    assert path.read_bytes().startswith(b"\x89PNG")
    ratio = privacy.lira(shadows(1.0, 6, images=100), key=KEY)
    path = privacy.save_roc({"planted": ratio}, tmp_path / "roc.pdf")
    assert path.read_bytes().startswith(b"%PDF")


def test_reports_of_chunks_join():
    report = along()
    joined = privacy.join([report, report])
    assert joined.curves["real"].accuracy.shape == (4, 2)
    once, twice = (r.curves["real"].mean_auc("LR")[-1] for r in (report, joined))
    assert twice.value == pytest.approx(once.value)
    assert twice.error <= once.error


def test_chunks_share_no_image():
    numbered = np.arange(20).reshape(20, 1, 1, 1).astype(np.uint8)
    whole = data.Dataset.from_arrays(numbered, np.zeros(20, int))
    parts = privacy.chunks(whole, 6, 3, key=KEY)
    assert [len(part) for part in parts] == [6, 6, 6]
    assert len({int(x) for part in parts for x in part.images.ravel()}) == 18


# What is refused


def infer(sets=None, **changed):
    train, test = fashion(40)
    options = {"key": KEY, "attacks": [Threshold()], "at": (1,), "progress": False}
    args = {"train": train, "test": test} | {
        k: changed.pop(k) for k in ("train", "test") if k in changed
    }
    return privacy.membership_inference(
        {"real": train} if sets is None else sets, **args, **options | changed
    )


def bare() -> Coreset:
    return Coreset(jnp.zeros((2, 14, 14, 1)), jnp.zeros((2, 10)), jnp.zeros(()))


def shadow(**changed):
    images, labels = noise()
    options = {"images": images, "labels": labels, "key": KEY} | changed
    return privacy.train_shadows(lambda *_: None, **options)  # pyright: ignore[reportArgumentType]


def unpaired() -> Shadows:
    return Shadows(np.zeros((2, 2)), np.ones((2, 2), bool))


COLOUR = data.Dataset.from_arrays(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]))
REFUSED = {
    "at": (lambda: infer(at=(5, 5)), "rising numbers of steps"),
    "no_at": (lambda: infer(at=()), "rising numbers of steps"),
    "twice": (lambda: infer(attacks=[Threshold(), Threshold()]), "its own name"),
    "no_attacks": (lambda: infer(attacks=[]), "at least one"),
    "networks": (lambda: infer(num_networks=0), "num_networks is 0"),
    "sets": (lambda: infer({}), "what distill returned"),
    "bare": (lambda: infer({"distilled": bare()}), "does not carry its preprocessing"),
    "size": (lambda: infer(test=COLOUR), r"test has \(8, 8, 3\)"),
    "model": (lambda: infer(model=MODEL), "does not take images"),
    "chunks": (lambda: privacy.chunks(COLOUR, 2, 2, key=KEY), "at most 1 images a chunk"),
    "few": (lambda: ATTACKS["LR"](*planted(10, 1.0), key=KEY), "needs 20 of each"),
    "one": (lambda: privacy.auc(np.ones(1), np.ones(5)), "at least two of each"),
    "nan": (lambda: privacy.roc(np.array([0.0, np.nan]), np.ones(5)), "are NaN"),
    "level": (lambda: privacy.Auc(0.5, 0.1).interval(95.0), "between 0 and 1"),
    "fpr": (lambda: privacy.roc(np.ones(2), np.ones(2)).tpr_at(0.0), "such as 0.01"),
    "odd_shadows": (lambda: shadow(num_shadows=5), "even number of at least 6"),
    "odd_images": (lambda: shadow(images=noise()[0][1:], labels=noise()[1][1:]), "even number of"),
    "labels": (lambda: shadow(labels=noise()[1] / 1), "one integer label each"),
    "unpaired": (lambda: privacy.lira(unpaired(), key=KEY), "in pairs"),
    "too_few": (lambda: privacy.likelihood_ratio(np.zeros(600), shadows(1.0, 2)), "more shadows"),
    "join": (lambda: privacy.join([]), "no reports"),
    "unknown": (lambda: along().curves["real"].mean_auc("mlp"), "choose one of"),
    "no_roc": (lambda: privacy.save_roc({}, "x.png"), "no reports to draw"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("without_scikit_learn")
def test_without_scikit_learn_the_extra_is_named():
    with pytest.raises(ImportError, match=r"rcig-eqx\[privacy\]"):
        infer(attacks=None)
    assert 0 <= Threshold()(*planted(20, 1.0), key=KEY).value <= 1
