import dataclasses
import math
import os
import signal
import threading
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

import _run
import rcig_eqx
from _problem import head_hypergradient
from rcig_eqx import (
    AbstractOuterLoss,
    Coreset,
    DistillResult,
    PoolSchedule,
    Recipe,
    coreset_optimizer,
    ema,
    evaluate,
    falling_rate,
    growing_average,
    hypergradient,
    init,
    platt_loss,
    presets,
    step,
)
from rcig_eqx._coreset import fold_temperature
from rcig_eqx._pool import get_member, new_member, new_pool, set_member, train_member, visit
from rcig_eqx._recipe import default_batch_size
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.data import (
    Dataset,
    ImageFolder,
    apply_in_chunks,
    load,
    standardize,
    stream,
    write_records,
)
from rcig_eqx.evaluation import Evaluation
from rcig_eqx.initializers import real_coreset
from rcig_eqx.methods import (
    AbstractMethod,
    cig,
    frepo,
    random_subset,
    rcig,
    rcig_paper,
    rig,
    staged,
    vig,
)
from rcig_eqx.models import convnet_for
from rcig_eqx.solvers import Adam, ConjugateGradient, Dual, Neumann

STEPS, BATCH = 5, 12
network = convnet_for((14, 14, 1), 3, width=4, depth=1)
traces: list[int] = []


def counted(key):
    traces.append(1)
    return network(key)


# One set of strategies, and so one compiled step, for most tests here.
SAME = {
    "images_per_class": 2,
    "model": counted,
    "method": rcig(),
    "optimizer": coreset_optimizer(),
    "pool": PoolSchedule(size=3, max_visit=2),
    "average": growing_average(),
    "batch_size": BATCH,
    "progress": False,
}


@pytest.fixture(scope="module", autouse=True)
def strict_rank():
    """Every test here runs without implicit broadcasting, in every thread."""
    before = jax.config.jax_numpy_rank_promotion  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_numpy_rank_promotion", "raise")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)


def subset(split: str, per_class: int) -> Dataset:
    """Three classes at half the size."""
    whole = load("fashion_mnist_small", split)
    chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:per_class] for c in range(3)])
    return Dataset(whole.images[chosen, ::2, ::2], whole.labels[chosen], whole.class_names[:3])


@pytest.fixture(scope="module")
def train():
    return subset("train", 20)


@pytest.fixture(scope="module")
def test():
    return subset("test", 10)


def distill(train, *, seed: int = 0, steps: int = STEPS, **changed) -> DistillResult:
    return _run.distill(train, key=jr.key(seed), steps=steps, **(SAME | changed))


@pytest.fixture(scope="module")
def seen():
    """What a callback saw of the run `result`."""
    return {"steps": [], "iterates": [], "losses": [], "traces": [], "deleted": [], "results": []}


@pytest.fixture(scope="module")
def result(train, seen):
    states = []

    def look(report):
        seen["steps"].append((report.step, report.steps))
        seen["iterates"].append(np.asarray(jnp.copy(report.state.psi.images)))
        seen["losses"].append(float(report.metrics["loss"]))
        seen["traces"].append(len(traces))
        if states:
            arrays = jax.tree.leaves(eqx.filter((states[-1].psi, states[-1].pool), eqx.is_array))
            seen["deleted"].append([x.is_deleted() for x in arrays])
        states.append(report.state)
        seen["results"].append(report.result())

    return distill(train, callbacks=(look,))


def test_the_default_batch_grows_with_the_set():
    wanted = {1: 64, 10: 64, 31: 64, 32: 128, 100: 384, 256: 1024, 5000: 1024}
    assert {n: default_batch_size(n) for n in wanted} == wanted
    quick = {"batch_size": None, "method": random_subset(), "steps": 1, "progress": False}
    large, small = (
        distill(subset("train", n), images_per_class=11, **quick).recipe["batch_size"]
        for n in (50, 20)
    )
    assert (large, small) == (128, 60)


def same_bytes(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def sets(result: DistillResult) -> tuple[Coreset, Coreset, Coreset]:
    return result.coreset, result.last, result.baseline


def test_a_result_describes_itself(result, train):
    assert result.coreset.images.shape == (6, 14, 14, 1)
    assert result.coreset.images.dtype == result.coreset.labels.dtype == jnp.float32
    assert result.class_names == train.class_names
    assert not result.interrupted
    assert result.recipe["steps_done"] == result.recipe["steps"] == STEPS
    model = {"name": "ConvNet", "width": 4, "depth": 1, "normalization": "none"}
    assert result.recipe["model"] == model | {"activation": "relu"}
    assert result.recipe["method"]["name"] == "Rcig"
    assert {"loss", "accuracy", "residual", "seconds", "rejected"} <= result.history.keys()
    assert all(len(series) == STEPS for series in result.history.values())
    each = np.diff(result.history["seconds"])
    assert (each > 0).all()
    assert each[-1] > 0.1 * np.median(each)  # though its numbers are read at once
    assert not same_bytes(result.last, result.baseline)
    pixels = result.baseline.preprocess.inverse(result.baseline.images)
    near = np.abs(np.asarray(pixels)[0] - train.images / 255).max((1, 2, 3)).min()
    assert near < 1e-5  # the baseline's images are images of the set


def test_callbacks_see_every_step(result, seen):
    assert seen["steps"] == [(number, STEPS) for number in range(1, STEPS + 1)]
    np.testing.assert_allclose(seen["losses"], result.history["loss"], rtol=1e-6)


def test_nothing_is_traced_after_the_first_step(result, seen):
    assert len(set(seen["traces"])) == 1


def test_a_second_run_with_the_defaults_compiles_nothing(train):
    """Strategies are compared by value, the default optimizer and average made once."""

    def model(key):  # not one that an earlier test has compiled
        return counted(key)

    defaults = {"method": None, "optimizer": None, "pool": None, "average": None, "model": model}

    def times_traced(**changed) -> int:
        before = len(traces)
        distill(train, steps=1, **(defaults | changed))
        return len(traces) - before

    first = times_traced()
    second = times_traced(seed=1)  # checking the network and building the pool make it as well
    assert second < first
    assert times_traced(method=rcig(l2_rate=1e-3)) == first


def test_the_state_gives_its_memory_to_the_next(result, seen):
    assert all(all(deleted) for deleted in seen["deleted"])


def test_a_result_of_earlier_outlives_later_steps(result, seen, tmp_path):
    early = seen["results"][1]
    assert early.recipe["steps_done"] == 2
    assert early.interrupted
    assert [len(r.history["loss"]) for r in seen["results"]] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(early.last.images, seen["iterates"][1])
    assert same_bytes(seen["results"][-1].coreset, result.coreset)
    early.save(tmp_path / "early")


def test_the_result_is_the_average_of_the_iterates(result, seen):
    s, n = 9, STEPS
    weights = [math.comb(i + s - 1, s) / math.comb(n + s, s + 1) for i in range(1, n + 1)]
    assert sum(weights) == pytest.approx(1)
    expected = sum(w * x for w, x in zip(weights, seen["iterates"], strict=True))
    np.testing.assert_allclose(result.coreset.images, expected, rtol=1e-4, atol=1e-5)


def test_same_key_same_bytes(result, train):
    again, other = distill(train), distill(train, seed=1)
    assert same_bytes(sets(again), sets(result))
    assert again.history["loss"].tobytes() == result.history["loss"].tobytes()
    assert not same_bytes(other.coreset, result.coreset)


def test_a_pair_of_arrays_is_as_good_as_a_dataset(result, train):
    pair = distill((np.asarray(train.images), jnp.asarray(train.labels)))
    assert same_bytes(sets(pair), sets(result))
    assert pair.class_names == ("0", "1", "2")


def test_the_loop_is_nothing_but_init_and_step(result, train):
    coreset_key, _, init_key, stream_key = jr.split(jr.key(0), 4)
    preprocess = standardize(train.images)
    start = real_coreset(train, 2, preprocess, key=coreset_key)
    recipe = Recipe(SAME["method"], network, SAME["optimizer"], SAME["pool"], SAME["average"])
    state = init(start, recipe, key=init_key)
    images = apply_in_chunks(preprocess, train.images)
    seed = int(jr.bits(stream_key, dtype=jnp.uint32))
    batches = stream((images, train.labels), BATCH, seed=seed)
    advance, metrics = eqx.filter_jit(step), {}
    for _ in range(STEPS):
        x, y = next(batches)
        state, metrics = advance(state, (jnp.asarray(x), jnp.asarray(y)))
    assert int(state.step) == STEPS
    np.testing.assert_allclose(state.psi.images, result.last.images, rtol=1e-5, atol=1e-6)
    labels = fold_temperature(state.average).labels
    np.testing.assert_allclose(labels, result.coreset.labels, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], result.history["loss"][-1], rtol=1e-5)


def test_true_from_a_callback_ends_the_run(train):
    told = [lambda report: report.metrics["loss"], lambda report: report.step == 2]
    stopped = distill(train, callbacks=told)  # a loss is no True
    assert stopped.interrupted
    assert stopped.recipe["steps_done"] == 2
    assert len(stopped.history["loss"]) == 2


def test_a_recipe_that_mirrors_and_a_set_that_does_not(train, result):
    recipe = dataclasses.replace(Recipe(frepo(), network), flip=True)
    with pytest.raises(ValueError, match="flip is True in the recipe"):
        init(result.coreset, recipe, key=jr.key(0))


def press_ctrl_c(times: int):
    def callback(report):
        if report.step == 2:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return callback


def test_ctrl_c_returns_what_there_is(train, capfd):
    before = signal.getsignal(signal.SIGINT)
    stopped = distill(train, callbacks=[press_ctrl_c(1)], progress=True)
    assert "Stopping after this step" in capfd.readouterr().err
    assert stopped.interrupted
    assert stopped.recipe["steps_done"] == len(stopped.history["loss"]) == 2
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_twice_abandons_the_run(train, before):
    """In the background too, where the signal is ignored at first."""
    outside = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(KeyboardInterrupt):
            distill(train, callbacks=[press_ctrl_c(2)])
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outside)


def test_another_thread_can_distill(result, train):
    done = []
    thread = threading.Thread(target=lambda: done.append(distill(train)))
    thread.start()
    thread.join()
    assert same_bytes(done[0].coreset, result.coreset)


def test_noise_in_place_of_images(result, train):
    noisy = distill(train, initialization="noise", steps=1)
    assert same_bytes(noisy.baseline, result.baseline)
    images = np.asarray(noisy.last.images)
    assert abs(images.mean()) < 0.1
    assert images.std() == pytest.approx(1, abs=0.1)


def pairs(train: Dataset):
    return list(zip(train.images, train.labels, strict=True))


@pytest.mark.parametrize("form", ["pairs", "dictionaries"])
def test_a_grain_dataset(form, train):
    source = grain.MapDataset.source(pairs(train))
    if form == "dictionaries":
        source = source.map(lambda pair: {"image": pair[0], "label": pair[1]})
    streamed = distill(source, steps=2)
    assert streamed.coreset.images.shape == (6, 14, 14, 1)
    assert np.isfinite(streamed.history["loss"]).all()
    assert same_bytes(distill(source, steps=2).coreset, streamed.coreset)


def test_a_label_not_seen_before_the_run_is_named(train, monkeypatch):
    images = np.concatenate([train.images] * 2)
    labels = np.concatenate([train.labels, np.full(len(train.labels), 3)])
    source = grain.MapDataset.source(list(zip(images, labels, strict=True)))
    monkeypatch.setattr("rcig_eqx._plan.sample", lambda *_, **__: train)
    with pytest.raises(ValueError, match=r"A label is 3, but .* had 3 classes: pass a Dataset"):
        distill(source, steps=20)


class Foreign:
    """A set as Hugging Face and TFDS have them."""

    def __init__(self, data: Dataset):
        self.data = data
        label = type("ClassLabel", (), {"names": list(data.class_names)})()
        self.features = {"image": None, "label": label}

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return {"image": self.data.images[index], "label": self.data.labels[index]}


@pytest.mark.parametrize("form", ["records", "foreign"])
def test_a_set_on_disk_is_distilled_and_evaluated_as_the_one_in_memory(
    form, train, test, result, report, tmp_path
):
    def elsewhere(data, name):
        folder = tmp_path / name
        return write_records(data, folder, progress=False) if form == "records" else Foreign(data)

    ours = distill(elsewhere(train, "train"))
    assert ours.class_names == train.class_names
    for name in ("coreset", "baseline"):
        theirs = getattr(result, name)
        np.testing.assert_allclose(getattr(ours, name).images, theirs.images, atol=1e-5)
    assert eqx.tree_equal(ours.coreset.preprocess, result.coreset.preprocess)
    again = evaluate(result, elsewhere(test, "test"), key=jr.key(0), num_networks=2, steps=20,
                     learning_rate=3e-3, at_once=1, progress=False)  # fmt: skip
    np.testing.assert_array_equal(again.accuracies, report.accuracies)


def test_frepo_on_a_folder_of_color_images_which_are_whitened_and_mirrored(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = rng.integers(0, 256, (8, 6, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    colors = distill(
        ImageFolder(tmp_path),
        steps=2,
        batch_size=5,
        method=frepo(),
        model=convnet_for((8, 6, 3), 2, 2, 1),
    )
    assert colors.class_names == ("cat", "dog")
    assert type(colors.coreset.preprocess).__name__ == "ZCA"
    assert colors.coreset.flip
    images, labels = colors.coreset.support()
    assert images.shape == (8, 8, 6, 3)
    np.testing.assert_array_equal(images[4:], images[:4, :, ::-1])
    np.testing.assert_array_equal(labels[4:], labels[:4])
    assert colors.recipe["method"]["name"] == "Frepo"
    assert "residual" not in colors.history
    assert np.isfinite(colors.history["loss"]).all()
    moved = np.abs(np.asarray(colors.last.images - colors.baseline.images)).max()
    assert 0 < moved < 1


@pytest.mark.parametrize("preset", [presets.paper, presets.authors_code])
def test_presets_and_their_adapting_rates(preset, train):
    """Rates are found before the first step, kept in the state, and nothing is traced again."""
    rates, counts = [], []

    def look(report):
        method = report.state.recipe.method
        rates.append([float(s.learning_rate) for s in (method.inner, method.solver)])
        counts.append(len(traces))

    given = preset(inner=Adam(steps=3), solver=Adam(steps=3))
    given = dataclasses.replace(given, pool=PoolSchedule(size=2, max_visit=given.pool.max_visit))
    few = {name: SAME[name] for name in ("images_per_class", "model", "batch_size", "progress")}
    run = rcig_eqx.distill(train, key=jr.key(0), steps=3, recipe=given, callbacks=[look], **few)
    assert np.isfinite(run.history["loss"]).all()
    assert not run.history["rejected"].any()
    assert {"inner_monotone", "solver_diverged", "inner_residual"} <= run.history.keys()
    assert min(rates[0]) > 1e-5
    for i, name in enumerate(("inner", "solver")):
        diverged = run.history[f"{name}_diverged"]
        followed = rates[0][i] * 0.9 ** np.cumsum(diverged)[1:] / 0.9 ** diverged[0]
        np.testing.assert_allclose([r[i] for r in rates[1:]], followed, rtol=1e-5)
    assert len(set(counts)) == 1
    tuned = [run.recipe["method"][name]["learning_rate"] for name in ("inner", "solver")]
    assert tuned == rates[-1]
    assert run.recipe["method"]["clip"] == (preset is presets.authors_code)


def test_an_ablation_runs(train):
    adam = Adam(1e-3, steps=2)
    run = distill(train, method=rig(inner=adam, solver=adam), steps=2)
    method = run.recipe["method"]
    assert (method["name"], method["linearized"]) == ("Implicit", False)
    assert np.isfinite(run.history["loss"]).all()
    assert not same_bytes(run.last.images, run.baseline.images)


@pytest.mark.parametrize(
    "solver", [Dual(ConjugateGradient(max_steps=1)), lx.CG(1e-9, 1e-9, max_steps=1)]
)
def test_a_solve_that_fell_short_is_said_at_once_and_at_the_end(train, solver, capsys):
    method = rcig_paper(inner=ConjugateGradient(), solver=solver)
    with pytest.warns(RuntimeWarning, match="A solve failed or stopped at its cap in 2 of 2 steps"):
        run = distill(train, method=method, steps=2, progress=True)
    assert not run.history["converged"].any()
    assert capsys.readouterr().err.count("A solve failed or stopped at its cap in step 1.") == 1


def test_a_random_subset_stays_what_it_is(train):
    run = distill(train, method=random_subset(), steps=2)
    assert same_bytes(run.coreset, run.baseline)
    assert same_bytes(run.last, run.baseline)


def test_x64_changes_no_dtype(train, test):
    with jax.enable_x64(True):
        wide = distill(train, steps=2)
        evaluate(wide, test, key=jr.key(0), num_networks=1, steps=2, progress=False)
    for leaf in jax.tree.leaves((wide.coreset, wide.last, wide.baseline)):
        assert leaf.dtype == jnp.float32
    assert np.isfinite(wide.history["loss"]).all()


ADAM = Adam(1e-3, 2)
PROMOTED = [
    rcig(),
    rcig(margin=True, clip=True, solver=ConjugateGradient()),
    frepo(),
    rcig_paper(inner=ADAM, solver=ADAM, clip=True),
    rcig_paper(inner=ConjugateGradient(), solver=Neumann(3), damping=0.1),
    cig(inner=Dual(), solver=Dual()),
    rig(inner=ADAM, solver=ADAM, gauss_newton=True),
    vig(inner=ADAM, solver=ADAM),
]


@pytest.mark.parametrize("method", PROMOTED, ids=lambda m: type(m).__name__)
def test_no_implicit_dtype_promotion(method, result):
    # Not the whole step: optax itself promotes.
    images, targets = result.baseline.images, jax.nn.one_hot(jnp.array([0, 1, 2] * 2), 3)
    with jax.numpy_dtype_promotion("strict"):
        hypergradient = eqx.filter_eval_shape(
            method.hypergradient,
            network(jr.key(0)),
            result.coreset,
            images,
            targets,
            key=jr.key(1),
        )
    assert {x.dtype for x in jax.tree.leaves(hypergradient.gradient)} == {jnp.dtype("float32")}


SETTINGS: dict[str, Any] = {
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no transfers": lambda: jax.transfer_guard("disallow"),
    "no compiling": jax.disable_jit,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_for_a_users_own_code_stop_nothing(setting, tmp_path):
    rng = np.random.default_rng(0)
    tiny = Dataset(rng.integers(0, 256, (8, 4, 4, 1), np.uint8), np.arange(8) % 2, ("a", "b"))
    model = convnet_for((4, 4, 1), 2, width=2, depth=1)
    key, theta, psi = jr.key(0), jnp.zeros(2), jnp.ones(2)
    run: dict[str, Any] = {"images_per_class": 1, "method": frepo(), "model": model, "steps": 2}
    run |= {"batch_size": 4, "progress": False}
    run |= {"recipe": Recipe(pool=PoolSchedule(size=1, max_visit=1))}
    run |= {"key": key, "checkpoint_dir": tmp_path}
    scored: dict[str, Any] = {"num_networks": 1, "steps": 1, "batch_size": 2, "progress": False}
    with SETTINGS[setting]():
        result = rcig_eqx.distill(tiny, **run)
        again = rcig_eqx.distill(tiny, resume=True, **run)
        accuracy = evaluate(result, tiny, key=key, model=model, **scored).mean
        found = hypergradient(
            lambda theta, psi: jnp.sum(theta * psi),
            lambda theta, psi: jnp.sum((theta - psi) ** 2),
            theta,
            psi,
            solver=ConjugateGradient(),
        )
    assert 0 <= accuracy <= 1
    assert again.last.images.tobytes() == result.last.images.tobytes()
    np.testing.assert_allclose(found.gradient, psi, rtol=1e-6)


class broken(AbstractMethod):
    """A hypergradient that is not a number."""

    def hypergradient(self, model, coreset, images, targets, *, key):
        return Hypergradient(jnp.ones(()), jax.tree.map(lambda x: x * jnp.nan, coreset), {})


def test_hypergradients_that_are_not_finite_are_rejected(train):
    with pytest.warns(RuntimeWarning, match=r"no finite hypergradient.*learning rate.*l2_rate"):
        nothing = distill(train, method=broken(), steps=100)
    assert nothing.interrupted
    assert nothing.history["rejected"].all()
    assert len(nothing.history["rejected"]) < 20
    assert same_bytes(nothing.last, nothing.baseline)
    np.testing.assert_allclose(nothing.coreset.images, nothing.baseline.images, rtol=1e-6)


# The pool


def test_a_member_ages_and_is_replaced():
    schedule = PoolSchedule(size=2, max_steps=3, min_visit=2, max_visit=2, learning_rate=1e-2)
    X, y = jr.normal(jr.key(1), (6, 14, 14, 1)), jnp.eye(3)[jnp.arange(6) % 3]
    go = eqx.filter_jit(lambda m, key: visit(m, X, y, network, schedule, key=key))
    member = new_member(network, schedule, key=jr.key(0))
    once = go(member, jr.key(2))
    assert int(once.age) == 2
    assert not same_bytes(once.model, member.model)
    twice = go(once, jr.key(3))
    assert int(twice.age) == 0
    _, fresh_key = jr.split(jr.key(3))
    assert same_bytes(twice.model, network(fresh_key))
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(twice.opt_state))

    loss = lambda m: float(jnp.mean((m.model(X) - y) ** 2))  # noqa: E731
    trained = eqx.filter_jit(train_member)(member, X, y, 20, schedule)
    assert int(trained.age) == 20
    assert loss(trained) < loss(member)


def test_a_pool_trains_on_part_of_the_set_at_a_time():
    """A step on two of six images is a full step on those two; of all six, as without a size."""
    X, y = jr.normal(jr.key(1), (6, 14, 14, 1)), jnp.eye(3)[jnp.arange(6) % 3]
    member, key = new_member(network, PoolSchedule(), key=jr.key(0)), jr.key(2)
    train = eqx.filter_jit(train_member)
    few = train(member, X, y, 1, PoolSchedule(batch_size=2), key=key)
    chosen = jr.choice(jr.fold_in(key, 0), 6, (2,), replace=False)
    same = train(member, X[chosen], y[chosen], 1, PoolSchedule())
    leaves = (jax.tree.leaves(eqx.filter(m.model, eqx.is_array)) for m in (few, same))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    whole = train(member, X, y, 3, PoolSchedule())
    assert same_bytes(
        train(member, X, y, 3, PoolSchedule(batch_size=6), key=key).model, whole.model
    )
    assert not same_bytes(train(member, X, y, 3, PoolSchedule(batch_size=2), key=key), whole)
    with pytest.raises(ValueError, match="batch_size"):
        PoolSchedule(batch_size=0)


def test_one_member_is_put_and_got():
    pool = new_pool(network, PoolSchedule(size=3), key=jr.key(0))
    member = new_member(network, PoolSchedule(), key=jr.key(9))
    changed = set_member(pool, jnp.array(1), member)
    assert same_bytes(get_member(changed, jnp.array(1)), member)
    for i in (0, 2):
        assert same_bytes(get_member(changed, jnp.array(i)), get_member(pool, jnp.array(i)))


# Averages


def average(weight, xs):
    value = 0.0
    for count, x in enumerate(xs):
        value += float(weight(jnp.asarray(count))) * (x - value)
    return value


def test_averages_in_closed_form():
    xs, n = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0], 6
    decay = 0.9
    weights = np.array([(1 - decay) * decay ** (n - 1 - i) for i in range(n)]) / (1 - decay**n)
    assert average(ema(decay), xs) == pytest.approx(weights @ xs, rel=1e-4)
    s = 4
    weights = [math.comb(i + s - 1, s) / math.comb(n + s, s + 1) for i in range(1, n + 1)]
    assert average(growing_average(float(s)), xs) == pytest.approx(np.dot(weights, xs), rel=1e-4)
    assert average(growing_average(0.0), xs) == pytest.approx(np.mean(xs), rel=1e-4)


def test_the_default_rate_is_held_and_then_falls():
    rate = falling_rate(0.5, hold=4)
    rates = jnp.stack([rate(jnp.asarray(step)) for step in range(16)])
    np.testing.assert_allclose(rates, [0.5 * min(1, 4 / n) ** 0.5 for n in range(1, 17)], rtol=1e-6)


def test_the_default_optimizer_takes_it_for_images_and_labels(train):
    """AdaBelief's update is linear in its rate: beside a constant one, step by step."""
    psi = real_coreset(train, 1, standardize(train.images), key=jr.key(0))
    psi: Any = eqx.tree_at(lambda c: c.preprocess, psi, None)
    optimizers = coreset_optimizer(), coreset_optimizer(0.03)
    updates = [jax.jit(lambda state, o=o: o.update(psi, state, psi)) for o in optimizers]
    states = [optimizer.init(psi) for optimizer in optimizers]
    for count in range(601):
        (falling, states[0]), (held, states[1]) = (
            update(state) for update, state in zip(updates, states, strict=True)
        )
        if count in (0, 499, 500, 600):
            ratio = min(1.0, (500 / (count + 1)) ** 0.5)
            np.testing.assert_allclose(falling.images, ratio * held.images, rtol=1e-5)
            np.testing.assert_allclose(falling.labels, ratio * held.labels, rtol=1e-5)
            np.testing.assert_allclose(falling.log_temperature, held.log_temperature)


# Evaluation


@pytest.fixture(scope="module")
def report(result, test):
    return evaluate(result, test, key=jr.key(0), num_networks=2, steps=20, learning_rate=3e-3,
                    at_once=1, progress=False)  # fmt: skip


def test_an_evaluation_adds_up(report, test):
    for each in (report, report.baseline):
        assert each.steps == 20
        assert each.accuracies.shape == (2,)
        assert ((each.accuracies >= 0) & (each.accuracies <= 1)).all()
        np.testing.assert_allclose(each.per_class.mean(1), each.accuracies)  # classes are equal
    assert report.baseline.baseline is None
    assert report.mean > 0.4  # of three classes
    assert "random real" in str(report)
    assert all(name in str(report) for name in test.class_names)


def test_mean_and_std():
    one = Evaluation(np.array([0.5]), np.array([[0.5]]), ("a",), 1)
    assert (one.mean, one.std) == (0.5, 0.0)
    two = Evaluation(np.array([0.4, 0.6]), np.array([[0.4], [0.6]]), ("a",), 1)
    assert two.mean == pytest.approx(0.5)
    assert two.std == pytest.approx(math.sqrt(0.02))
    assert str(two).startswith("distilled set   50.00% ± 14.14%")


def test_networks_together_are_as_in_turn(report, result, test):
    together = evaluate(
        result, test, key=jr.key(0), num_networks=2, steps=20, learning_rate=3e-3, at_once=2,
        progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(together.accuracies, report.accuracies, atol=0.04)


def test_a_coreset_alone_on_batches_and_a_class_never_tested(result, test):
    part = (test.images[:20], test.labels[:20])  # two of three classes
    alone = evaluate(
        result.coreset, part, key=jr.key(0), model=network, num_networks=1, steps=3, batch_size=4,
        progress=False,
    )  # fmt: skip
    assert alone.baseline is None
    missing = evaluate(
        result, part, key=jr.key(0), model=network, num_networks=1, steps=3, batch_size=4,
        progress=False,
    )  # fmt: skip
    assert missing.class_names == result.class_names
    assert np.isnan(missing.per_class[:, 2]).all()
    np.testing.assert_array_equal(missing.accuracies, alone.accuracies)


# One method after another


def test_staged_takes_the_second_method_after_so_many_steps(train):
    """The same steps as each method alone, from where it starts."""
    adam = Adam(1e-3, 2)
    both = staged(frepo(), rcig(), 2)
    run = distill(train, method=both, steps=4)
    assert run.history["iterations"][:2].tolist() == [0, 0]
    assert (run.history["iterations"][2:] > 0).all()
    assert run.history["converged"].all()
    assert run.recipe["method"]["done"] == 4
    early = distill(train, method=frepo(), steps=2)
    np.testing.assert_allclose(run.history["loss"][:2], early.history["loss"], rtol=1e-5)
    only = distill(train, method=staged(frepo(), rcig_paper(inner=adam, solver=adam), 1), steps=2)
    assert np.isfinite(only.history["loss"]).all()


class Signed(AbstractOuterLoss):
    """The paper's own form divides by τ, for which folded labels would be off by τ²."""

    sign: int

    @property
    def scales_predictions(self):
        return self.sign == 1

    def __call__(self, predictions, targets, log_temperature):
        return platt_loss(predictions, targets, self.sign * log_temperature)


# name: an outer loss, and whether labels take its temperature
TEMPERATURES = {
    "times": (Signed(1), True),
    "divided": (Signed(-1), False),
    "unknown": (lambda f, y, t: platt_loss(f, y, t), False),
}


@pytest.mark.parametrize("name", TEMPERATURES)
def test_labels_take_the_temperature_of_a_loss_that_says_it_multiplies(train, name):
    loss, folds = TEMPERATURES[name]
    run = distill(train, method=frepo(outer_loss=loss), steps=2)
    assert run.recipe["fold"] == folds
    assert (float(run.coreset.log_temperature) == 0) == folds


class Wrapped(AbstractMethod):
    """Somebody's own, which says nothing of its losses."""

    def hypergradient(self, model, coreset, images, targets, *, key):
        return rig(inner=Adam(1e-3, 1), solver=Adam(1e-3, 1)).hypergradient(
            model, coreset, images, targets, key=key
        )


def test_labels_do_not_take_a_temperature_of_which_nothing_is_known(train):
    assert not distill(train, method=Wrapped(), steps=1).recipe["fold"]
    both = staged(frepo(outer_loss=platt_loss), rcig(), 1)
    assert distill(train, method=both, steps=1).recipe["fold"]


def test_folding_the_temperature_leaves_the_predictions_and_scales_the_labels(train, result):
    """To the ridge head, labels times τ are predictions times τ; what is returned is folded."""
    plain = distill(train, fold=False)
    assert float(result.coreset.log_temperature) == float(result.last.log_temperature) == 0
    assert float(plain.coreset.log_temperature) != 0
    assert same_bytes(fold_temperature(plain.coreset), result.coreset)
    assert same_bytes(plain.coreset.images, result.coreset.images)
    images, targets = result.baseline.images, jax.nn.one_hot(jnp.array([0, 1, 2] * 2), 3)
    a, b = (
        head_hypergradient(network(jr.key(0)), c, images, targets, outer_loss=platt_loss).value
        for c in (plain.last, result.last)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
