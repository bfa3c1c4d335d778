"""Inputs that are no images: rows of a table, embeddings, series; and images, told apart."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from _problem import exact_hypergradient
from rcig_eqx import (
    Coreset,
    Recipe,
    convnet_for,
    data,
    distill,
    evaluate,
    export,
    load_export,
    load_result,
    platt_loss,
    save_grid,
)
from rcig_eqx.models import MLP, Network, network_for
from test_exactness import L2_RATE, closed_form, relative_error

SCALE = np.array([1, 10, 100, 1, 1, 0.01, 1e4, 1])
OFFSET = np.array([0, 1e6, 0, 0, 5, 0, 0, 0])


def rows(n, seed):
    """Three classes of two clusters each, columns in very different units: X [n 8], y [n]."""
    centers = 1.2 * np.random.default_rng(0).normal(size=(3, 2, 8))
    rng = np.random.default_rng(seed)
    y, cluster = rng.integers(0, 3, n), rng.integers(0, 2, n)
    return (centers[y, cluster] + rng.normal(size=(n, 8))) * SCALE + OFFSET, y


@pytest.fixture(scope="module")
def result():
    return distill(rows(1000, 1), images_per_class=3, key=jr.key(0), steps=60, progress=False)


@pytest.fixture(scope="module")
def report(result):
    return evaluate(result, rows(1000, 2), key=jr.key(1), num_networks=2, steps=800, progress=False)


def test_a_table_is_distilled_by_an_mlp_better_than_its_rows(result, report):
    assert result.recipe["model"]["name"] == "MLP"
    assert result.recipe["preprocess"] == "Standardize"
    assert not result.recipe["flip"]
    assert result.coreset.images.shape == (9, 8)
    assert report.mean > 0.75
    assert report.mean > report.baseline.mean + 0.05
    assert "mirrored" not in str(report)


def test_a_table_is_standardized_in_its_own_units(result):
    X, _ = rows(1000, 1)
    preprocess = result.coreset.preprocess
    np.testing.assert_allclose(preprocess.mean, X.mean(0), rtol=1e-6)
    np.testing.assert_allclose(preprocess.std, X.std(0), rtol=1e-6)
    seen = np.asarray(preprocess(X))
    np.testing.assert_allclose(seen.std(0), 1, rtol=1e-2)  # a column of 1e6 ± 10 is so in float32
    np.testing.assert_allclose(preprocess.inverse(seen), X, rtol=1e-4, atol=1e-6 * SCALE.max())


@pytest.mark.parametrize(
    ("column", "mean", "std"),
    [
        (np.full(6, 1e6), 1e6, 1.0),
        (np.full(6, 0.1), 0.1, 1.0),
        (1e6 + np.arange(6) % 2 * 200, 1e6 + 100, 100.0),
        (np.arange(6) % 2 * 2e-9, 1e-9, 1e-9),
    ],
    ids=["constant", "no binary fraction", "large", "tiny"],
)
def test_columns_of_any_size(column, mean, std):
    found = data.standardize(column[:, None])
    np.testing.assert_allclose(found.mean, [mean], rtol=1e-6)
    np.testing.assert_allclose(found.std, [std], rtol=1e-6)


def test_a_result_and_an_export_are_read_again(result, report, tmp_path):
    kept = load_result(result.save(tmp_path / "set.safetensors"))
    assert eqx.tree_equal(kept.coreset, result.coreset)
    folder = export(result, tmp_path / "export", evaluation=report)
    found = load_export(folder)
    np.testing.assert_array_equal(found.coreset.images, result.coreset.images)
    assert found.card["pictures"] is None
    assert not list(folder.glob("*.png"))
    assert "/ 255" not in (folder / "card.json").read_text()
    again = evaluate(
        found.coreset, rows(200, 3), key=jr.key(1), num_networks=1, steps=300, progress=False
    )
    assert again.mean > 0.6


def series(n, seed):
    """Sines of two frequencies and any phase, [n 16 1]."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    t = np.arange(16) / 16 + rng.random((n, 1))
    return np.sin(2 * np.pi * (1 + 2 * y[:, None]) * t)[..., None].astype(np.float32), y


def convolutional(key):
    """A network of one series, channels first."""
    first, last = jr.split(key)
    layer = eqx.nn.Conv1d(1, 8, 5, stride=2, padding=2, key=first)
    body = eqx.nn.Sequential([layer, eqx.nn.Lambda(jax.nn.softplus)])
    return Network(body, eqx.nn.Linear(64, 2, key=last), channels_first=True)


def dense(key):
    """A network of one embedding."""
    first, last = jr.split(key)
    body = eqx.nn.Sequential([eqx.nn.Linear(8, 32, key=first), eqx.nn.Lambda(jax.nn.softplus)])
    return Network(body, eqx.nn.Linear(32, 3, key=last))


@pytest.mark.parametrize(
    ("draw", "model"), [(series, convolutional), (rows, dense)], ids=["series", "embeddings"]
)
def test_a_network_of_ones_own(draw, model):
    made = distill(
        draw(400, 1), images_per_class=2, key=jr.key(0), model=model, steps=40, progress=False
    )
    found = evaluate(
        made,
        draw(400, 2),
        key=jr.key(1),
        model=model,
        num_networks=1,
        learning_rate=3e-3,
        progress=False,
    )
    assert made.coreset.images.shape[1:] == draw(1, 0)[0].shape[1:]
    assert found.mean > 0.6


def test_the_hypergradient_of_rows_is_exact():
    with jax.enable_x64(True):
        keys = jr.split(jr.key(0), 5)
        model = MLP(5, 3, width=7, softplus=3.0, dtype=jnp.float64, key=keys[0])
        draw = lambda key, *shape: jr.normal(key, shape, jnp.float64)  # noqa: E731
        coreset = Coreset(draw(keys[1], 4, 5), draw(keys[2], 4, 3), jnp.asarray(0.1))
        batch = draw(keys[3], 6, 5), jax.nn.one_hot(jnp.arange(6) % 3, 3, dtype=jnp.float64)
        right = jax.grad(closed_form(model, *batch, platt_loss))(coreset)
        result = exact_hypergradient(model, coreset, *batch, l2_rate=L2_RATE, solver=lx.Cholesky())
        assert relative_error(result.gradient, right) < 1e-8


def ask(**changed):
    return distill(
        **{"train": rows(60, 1), "images_per_class": 1, "key": jr.key(0), "progress": False}
        | changed
    )


X, Y = rows(60, 1)
REFUSED = {
    "mirrored": (lambda made: ask(recipe=Recipe(flip=True)), "flip mirrors images"),
    "mirrored by hand": (
        lambda made: Coreset(jnp.zeros((2, 8)), jnp.zeros((2, 2)), jnp.zeros(()), flip=True),
        "flip mirrors images",
    ),
    "whitened": (lambda made: data.zca(X), "Whitening is of images"),
    "augmented": (
        lambda made: evaluate(made, (X, Y), key=jr.key(0), augment=True),
        "augment changes images",
    ),
    "a picture": (
        lambda made: save_grid(made.coreset, made.class_names, "none.png"),
        "Pictures are of images",
    ),
    "a convnet": (lambda made: convnet_for((8,), 3), "ConvNet takes images"),
    "another width": (
        lambda made: ask(model=network_for("mlp", (7,), 3)),
        r"does not take inputs \(8,\)",
    ),
    "no network": (lambda made: ask(train=series(60, 0)), "model is left out, .* inputs"),
    "counts": (lambda made: ask(train=(X.astype(int), Y)), "pass floats"),
    "bytes": (lambda made: ask(train=(X.astype(np.uint8), Y)), r"not \[n h w c\]"),
    "a gap": (
        lambda made: ask(train=(np.where(X[3, 2] == X, np.nan, X), Y)),
        r"1 NaN or infinite values, the first at index \(3, 2\)",
    ),
    "rounded away": (lambda made: ask(train=(1 + 1e-9 * X, Y)), "float32 cannot tell apart"),
    "other columns": (
        lambda made: evaluate(made, (X[:, :5], Y), key=jr.key(0)),
        r"\(8,\) .*\(5,\)",
    ),
    "numbers to predict": (lambda made: ask(train=(X, X[:, 0])), "number of each one's class"),
    "another option": (lambda made: network_for("mlp", (8,), 3, growth=2), "growth is no option"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_for_images_alone_says_so(name, result):
    call, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        call(result)


def test_a_table_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("typer")
    from rcig_eqx import _cli

    (tmp_path / "table").mkdir()
    for seed, split in enumerate(("train", "test")):
        inputs, labels = rows(200, seed + 1)
        np.savez(tmp_path / "table" / split, images=inputs, labels=labels)
    said = {}
    few = ["--networks", "1"]
    for words in (
        ["distill", tmp_path / "table", "--steps", "20", "--width", "32", *few],
        [
            "evaluate",
            tmp_path / "out" / "distilled.safetensors",
            "--data",
            tmp_path / "table",
            *few,
        ],
    ):
        words += ["--out", tmp_path / "out"] if words[0] == "distill" else []
        with pytest.raises(SystemExit) as ended:
            _cli.main(list(map(str, words)))
        said[words[0]] = capsys.readouterr()
        assert not ended.value.code, said[words[0]].err
    assert "200 inputs" in said["distill"].out
    assert not list((tmp_path / "out").glob("*.png"))
    filed = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert filed["mean"] > 0.5
    assert load_result(tmp_path / "out" / "distilled.safetensors").recipe["model"]["width"] == 32
