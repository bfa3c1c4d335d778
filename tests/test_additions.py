"""Six additions to the library, each a few lines on public bases, each by Python and by name.

From the command line they are used as another package's are: by an entry point, or by a script
that registers them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import lineax as lx
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.cluster.vq import kmeans2

from rcig_eqx import (
    Recipe,
    convnet_for,
    data,
    distill,
    evaluate,
    evaluation,
    initializers,
    load_result,
    methods,
    parameterizations,
    solvers,
)
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.methods import AbstractMethod


class Matching(AbstractMethod):
    """Mean features of each class, matched (distribution matching, Zhao and Bilen, 2023)."""

    def hypergradient(self, model, coreset, images, targets, *, key):
        own = jax.nn.one_hot(coreset.labels.argmax(-1), coreset.num_classes)

        def means(images, members):
            return members.T @ model.features(images) / jnp.maximum(members.sum(0), 1)[:, None]

        def apart(coreset):
            gaps = means(coreset.images, own) - means(images, targets)
            return jnp.sum(gaps**2 * (targets.sum(0) > 0)[:, None])

        return Hypergradient(*eqx.filter_value_and_grad(apart)(coreset), {})


class Steepest(lx.AbstractLinearSolver[Any]):
    """Steps along the residual, each as far as is best."""

    max_steps: int = eqx.field(static=True, default=100)

    def init(self, operator, options):
        return operator

    def compute(self, state, vector, options):
        b, unravel = ravel_pytree(vector)

        def product(x):
            return ravel_pytree(state.mv(unravel(x)))[0]

        def step(x, _):
            r = b - product(x)
            curvature = jnp.maximum(r @ product(r), jnp.finfo(r.dtype).tiny)
            return x + r * (r @ r) / curvature, None

        x, _ = jax.lax.scan(step, jnp.zeros_like(b), length=self.max_steps)
        return unravel(x), lx.RESULTS.successful, {"num_steps": self.max_steps}

    def transpose(self, state, options):
        return state.transpose(), options

    def conj(self, state, options):
        return state, options

    def assume_full_rank(self):
        return True


def rcig_steepest() -> AbstractMethod:
    """How the command line is given a solver: as a method that has it."""
    return methods.rcig_paper(inner=solvers.Dual(lx.Cholesky()), solver=Steepest())


class KMeans(initializers.AbstractInitializer):
    """The centers of as many clusters of each class's images as are distilled."""

    def __call__(self, train, like, preprocess, *, key):
        images, each = preprocess(train.images), len(like.images) // train.num_classes
        flat = np.asarray(images).reshape(len(images), -1)
        given: Any = {"minit": "++", "seed": int(jr.randint(key, (), 0, 2**31 - 1))}
        centers = [
            kmeans2(flat[train.labels == c], each, **given)[0] for c in range(train.num_classes)
        ]
        start = jnp.asarray(np.concatenate(centers)).reshape(like.images.shape)
        return eqx.tree_at(lambda c: c.images, like, start)


class Coarse(parameterizations.AbstractParameterization):
    """A quarter of the pixels, each of them shown as two by two."""

    def encode(self, coreset):
        n, h, w, c = coreset.images.shape
        blocks = coreset.images.reshape(n, h // 2, 2, w // 2, 2, c)
        return eqx.tree_at(lambda c: c.images, coreset, blocks.mean((2, 4)))

    def decode(self, psi):
        shown = jnp.repeat(jnp.repeat(psi.images, 2, axis=1), 2, axis=2)
        return eqx.tree_at(lambda c: c.images, psi, shown)


def top_two(outputs, labels):
    """The fraction of examples whose label is among the two largest outputs."""
    second = jnp.sort(outputs, axis=-1)[:, -2]
    return jnp.mean(outputs[jnp.arange(len(labels)), labels] >= second)


def csv(folder: Path):
    """A line per step in `steps.csv`."""
    folder.mkdir(parents=True, exist_ok=True)

    def log(progress):
        with open(folder / "steps.csv", "a") as file:
            file.write(f"{progress.step},{float(progress.metrics['loss'])}\n")

    return log


# By Python

CLASSES, SIZE = 3, 8
NETWORK = convnet_for((SIZE, SIZE, 1), CLASSES, width=4, depth=1)
EACH, STEPS = 2, 4


def images_of(seed: int) -> data.Dataset:
    """Twelve images of each class, of two clusters: its own stripes, and these inverted."""
    rng, labels = np.random.default_rng(seed), np.arange(36) % CLASSES
    stripes = 255 * (np.arange(SIZE)[None, :] // (labels[:, None] + 1) % 2)
    stripes = np.where((np.arange(36) // CLASSES % 2)[:, None], stripes, 255 - stripes)
    noise = rng.normal(0, 30, (36, SIZE, SIZE))
    images = np.clip(stripes[:, None] + noise, 0, 255).astype(np.uint8)
    return data.Dataset.from_arrays(images[..., None], labels)


TRAIN, TEST = images_of(0), images_of(1)


def distilled(**options):
    given = {"method": methods.frepo(), "steps": STEPS} | options
    return distill(
        TRAIN, images_per_class=EACH, key=jr.key(0), model=NETWORK, batch_size=36, progress=False,
        **given,
    )  # fmt: skip


def test_a_method_is_called_and_lowers_its_own_loss():
    result = distilled(method=Matching(), optimizer=optax.sgd(0.1), steps=20)
    assert result.recipe["method"] == {"name": "Matching"}
    assert result.history["loss"][-1] < 0.5 * result.history["loss"][0]
    np.testing.assert_array_equal(result.last.labels, result.baseline.labels)  # no part of its loss
    assert not np.allclose(result.last.images, result.baseline.images)


def test_a_solver_takes_its_steps_and_comes_to_the_exact_solution():
    def last(solver):
        inner = solvers.Dual(lx.Cholesky())
        method = methods.rcig_paper(inner=inner, solver=solver, l2_rate=0.3)
        return distilled(method=method, optimizer=optax.sgd(1.0), steps=2)

    exact, few, many = map(last, (solvers.Dual(lx.Cholesky()), Steepest(1), Steepest(100)))
    assert set(few.history["iterations"]) == {1}
    assert set(many.history["iterations"]) == {100}
    assert many.history["residual"].max() < 1e-3 < few.history["residual"].min()
    moved = np.abs(exact.last.images - exact.baseline.images).max()
    near, far = (np.abs(run.last.images - exact.last.images).max() for run in (many, few))
    assert near < 1e-3 * moved
    assert far > 1e-2 * moved


def test_an_initializer_sees_the_data_and_its_images_are_the_start():
    still = optax.sgd(0.0)
    result = distilled(initialization=KMeans(), optimizer=still)
    preprocess = result.last.preprocess
    assert preprocess is not None
    images = np.asarray(preprocess(TRAIN.images))
    for c in range(CLASSES):
        centers = np.asarray(result.last.images[EACH * c : EACH * (c + 1)])
        members = images[TRAIN.labels == c]
        halves = np.stack([members[0::2].mean(0), members[1::2].mean(0)])  # the two clusters
        either = [np.abs(centers - order).max() for order in (halves, halves[::-1])]
        assert min(either) < 1e-4
    assert not np.allclose(result.last.images, distilled(optimizer=still).last.images)


def test_a_parameterization_is_what_is_optimized():
    result = distilled(recipe=Recipe(parameterization=Coarse()))
    assert result.psi.images.shape == (EACH * CLASSES, SIZE // 2, SIZE // 2, 1)
    images = np.asarray(result.last.images)
    np.testing.assert_array_equal(images[:, ::2, ::2], images[:, 1::2, 1::2])
    first = Coarse().decode(Coarse().encode(result.baseline))
    assert not np.allclose(images, first.images)


def test_a_metric_is_measured_on_every_network():
    report = evaluate(
        distilled(), TEST, key=jr.key(1), model=NETWORK, metrics={"top_two": top_two},
        num_networks=3, steps=20, progress=False,
    )  # fmt: skip
    assert report.metrics["top_two"].shape == (3,)
    assert (report.metrics["top_two"] > report.accuracies).all()
    assert "top_two" in str(report)


def test_a_logger_writes_every_step_down(tmp_path):
    result = distilled(callbacks=[csv(tmp_path / "log")])
    written = np.loadtxt(tmp_path / "log" / "steps.csv", delimiter=",")
    np.testing.assert_array_equal(written[:, 0], np.arange(1, STEPS + 1))
    np.testing.assert_allclose(written[:, 1], result.history["loss"], rtol=1e-6)


# From the command line

ADDED = {
    "methods": {"matching": "Matching", "rcig_steepest": "rcig_steepest"},
    "initializers": {"clusters": "KMeans"},
    "parameterizations": {"coarse": "Coarse"},
    "metrics": {"top_two": "top_two"},
    "loggers": {"steps": "csv"},
    "datasets": {"stripes": "stripes"},
}


def stripes(split: str, directory: object, **_: Any) -> data.Dataset:
    """A data set by name."""
    return {"train": TRAIN, "test": TEST}[split]


def by_entry_point(folder: Path) -> list[str]:
    """A package that has them, as pip leaves one, and the command."""
    package = folder / "additions-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: additions\nVersion: 1.0\n")
    lines = [
        line
        for group, names in ADDED.items()
        for line in (f"[rcig_eqx.{group}]", *(f"{n} = {MODULE}:{o}" for n, o in names.items()))
    ]
    (package / "entry_points.txt").write_text("\n".join(lines))
    return ["-m", "rcig_eqx"]


def by_registry(folder: Path) -> list[str]:
    """A script that registers them and is the command from then on."""
    rooms = {"methods": "methods.METHODS", "initializers": "initializers.INITIALIZERS",
             "parameterizations": "parameterizations.PARAMETERIZATIONS",
             "metrics": "evaluation.METRICS", "loggers": "run.LOGGERS",
             "datasets": "data.DATASETS"}  # fmt: skip
    lines = [
        f"rcig_eqx.{rooms[group]}.register({name!r}, {MODULE}.{own})"
        for group, names in ADDED.items()
        for name, own in names.items()
    ]
    script = folder / "with_additions.py"
    command = 'runpy.run_module("rcig_eqx", run_name="__main__")'
    script.write_text("\n".join([f"import runpy, rcig_eqx, {MODULE}", *lines, command]))
    return [str(script)]


MODULE = Path(__file__).stem


@pytest.fixture(scope="module", params=[by_entry_point, by_registry])
def command(request, tmp_path_factory):
    """Runs the command in a process of its own, and returns what it prints."""
    folder = tmp_path_factory.mktemp("additions")
    start = [sys.executable, *request.param(folder)]
    path = os.pathsep.join([str(folder), str(Path(__file__).parent), *sys.path])

    def called(*arguments: object) -> str:
        done = subprocess.run(
            [*start, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": path, "COLUMNS": "1000"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return called


TINY = ["-n", 2, "--steps", 2, "--width", 2, "--depth", 1, "--networks", 2, "--evaluation-steps", 3]


def test_a_command_takes_them_by_name(command, tmp_path):
    command(
        "distill", "stripes", *TINY, "--method", "matching", "--initialization", "clusters",
        "--parameterization", "coarse", "--metric", "top_two", "--log", "steps", "--out", tmp_path,
        "--learning-rate", 1e-6,
    )  # fmt: skip
    result = load_result(tmp_path / "distilled.safetensors")
    assert result.recipe["method"] == {"name": "Matching"}
    assert result.recipe["initialization"] == "clusters"
    assert (tmp_path / "steps.csv").read_text().count("\n") == 2
    images = np.asarray(result.last.images)
    np.testing.assert_array_equal(images[:, ::2, ::2], images[:, 1::2, 1::2])
    preprocess = result.last.preprocess
    assert preprocess is not None
    for c in range(CLASSES):  # the middle of two clusters of a size
        middle = np.asarray(preprocess(TRAIN.images[TRAIN.labels == c])).mean(0)
        blocks = middle.reshape(SIZE // 2, 2, SIZE // 2, 2, 1).mean((1, 3))
        start = images[EACH * c : EACH * (c + 1), ::2, ::2].mean(0)
        np.testing.assert_allclose(start, blocks, atol=1e-4)
    measured = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(measured["metrics"]["top_two"]) == 2
    assert len(measured["baseline"]["metrics"]["top_two"]) == 2


def test_a_command_takes_a_solver_within_a_method(command, tmp_path):
    method = ["--method", "rcig_steepest"]
    command("distill", "stripes", *TINY, *method, "--no-evaluate", "--out", tmp_path)
    result = load_result(tmp_path / "distilled.safetensors")
    assert result.recipe["method"]["solver"] == {"name": "Steepest", "max_steps": 100}
    assert set(result.history["iterations"]) == {100}


def test_the_help_lists_them(command):
    shown = command("distill", "--help")
    explained = "A data set's name" in shown  # which the oldest typer does of options alone
    for group in ADDED if explained else ADDED.keys() - {"datasets"}:
        for name in ADDED[group]:
            assert name in shown
    assert "matching" in command("reproduce", "--help")


# The registry itself


def test_a_registry_refuses_what_it_has_and_what_makes_nothing(monkeypatch):
    registry = evaluation.METRICS
    with pytest.raises(ValueError, match="metrics has 'accuracy' already"):
        registry.register("accuracy", top_two)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # else the hook tells
    with pytest.raises(ValueError, match="make is 3: pass a function"):
        registry.register("three", 3)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(registry, "_makers", dict(registry._makers))
    registry.register("top_two", top_two)
    assert list(registry) == ["accuracy", "balanced_accuracy", "top_two"]
    assert registry.find("metrics", "top_two") is top_two


@pytest.mark.parametrize("target", ["no_such_module:one", "json:one"])
def test_an_entry_point_that_leads_nowhere_is_named(tmp_path, monkeypatch, target):
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[rcig_eqx.metrics]\nbroken = {target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "broken" in evaluation.METRICS
    with pytest.raises(ImportError, match=f"broken of the metrics .* from {target} .*: mend"):
        evaluation.METRICS.find("metrics", "broken")


def test_a_data_set_by_name_must_be_one(monkeypatch):
    monkeypatch.setattr(data.DATASETS, "_makers", dict(data.DATASETS._makers))
    seen = []

    def none(split, directory, **options):
        seen.append((split, directory, options))

    data.DATASETS.register("none", none)  # pyright: ignore[reportArgumentType]
    with pytest.raises(data.DataError, match="none made a NoneType"):
        data.load("none", "test", directory="here", download=False)
    assert seen == [("test", "here", {"download": False, "mirror": None})]
