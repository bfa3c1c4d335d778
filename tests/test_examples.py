"""The scripts in `examples/`, which know nothing of this library, against it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import (
    Coreset,
    DistillResult,
    convnet_for,
    data,
    distill,
    evaluate,
    export,
    platt_loss,
)
from rcig_eqx.data import Identity, standardize, to_state, zca
from rcig_eqx.evaluation import train_network
from rcig_eqx.evaluation._train_network import training_recipe
from rcig_eqx.methods import frepo

EXAMPLES = Path(__file__).parent.parent / "examples"
PREPROCESS = {
    "identity": lambda images: Identity(),
    "standardize": standardize,
    "zca": zca,
    "zca_blocks": lambda images: zca(images, block=2),
}


def example(name: str):
    """One of the two scripts, imported."""
    if name == "pytorch":
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"train_with_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_numpy(model):
    """A network's parameters as the NumPy script holds them: a list it changes in place."""
    layers = [*model.blocks, model.head]
    flat = ((x.kernel.reshape(-1, x.kernel.shape[-1]), x.bias) for x in layers)
    return [np.array(each) for pair in flat for each in pair]


def trained_by(name: str, model, images, labels, recipe) -> list[np.ndarray]:
    """Kernels and biases after a script has trained a network that starts as `model`."""
    script, net = example(name), recipe["network"]
    if name == "numpy":
        parameters = in_numpy(model)
        script.train(recipe, parameters, images, labels, np.random.default_rng(0))
        return parameters
    import torch  # pyright: ignore[reportMissingImports]

    x = torch.tensor(images).permute(0, 3, 1, 2)
    network = script.fresh_network(net, x, labels.shape[1])
    side = model.head.kernel.shape[0] // model.blocks[-1].kernel.shape[-1]
    kernels = [b.kernel.transpose(3, 2, 0, 1) for b in model.blocks]
    head = model.head.kernel.reshape(*_map(side, images.shape), -1, labels.shape[1])
    kernels.append(head.transpose(3, 2, 0, 1).reshape(labels.shape[1], -1))
    biases = [x.bias for x in (*model.blocks, model.head)]
    layers = [layer for layer in network if hasattr(layer, "weight")]
    with torch.no_grad():
        for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
            layer.weight.copy_(torch.tensor(np.array(kernel)))
            layer.bias.copy_(torch.tensor(np.array(bias)))
    script.train(network, x, torch.tensor(labels), recipe)
    out = []
    for layer in layers[:-1]:
        out += [layer.weight.permute(2, 3, 1, 0).flatten(0, 2), layer.bias]
    last = layers[-1].weight.reshape(labels.shape[1], -1, *_map(side, images.shape))
    out += [last.permute(2, 3, 1, 0).flatten(0, 2), layers[-1].bias]
    return [each.detach().numpy() for each in out]


def _map(pixels: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the last map, which has as many pixels."""
    height = round((pixels * shape[1] / shape[2]) ** 0.5)
    return height, pixels // height


@pytest.fixture(scope="module")
def training():
    """A small problem, a fresh network, and what the library's 30 steps make of it."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 9, 13, 1), np.float32)  # pooling drops a row
    labels = rng.standard_normal((4, 3), np.float32)
    make = convnet_for((9, 13, 1), 3, width=3, depth=2, softplus=None)
    options = {"steps": 30, "learning_rate": 3e-3}
    recipe = json.loads(json.dumps(training_recipe(make, **options)))

    @eqx.filter_jit
    def train(images, labels):
        model = make(jr.key(0))
        return model, train_network(model, images, labels, key=jr.key(1), **options)

    return images, labels, recipe, *train(jnp.asarray(images), jnp.asarray(labels))


@pytest.mark.parametrize("name", ["numpy", "pytorch"])
def test_both_train_as_the_library_does(name, training):
    """From the same start, every parameter after 30 steps of warm-up and decay."""
    images, labels, recipe, model, expected = training
    theirs = trained_by(name, model, images, labels, recipe)
    for ours, start, each in zip(in_numpy(expected), in_numpy(model), theirs, strict=True):
        assert abs(ours - start).max() > 0.02  # it did train
        np.testing.assert_allclose(each, ours, atol=2e-4)


@pytest.mark.parametrize("name", ["numpy", "pytorch"])
@pytest.mark.parametrize("kind", PREPROCESS)
def test_both_preprocess_as_the_library_does(name, kind):
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 6, 3)).astype(np.uint8)
    preprocess = PREPROCESS[kind](images)
    config, state = to_state(preprocess)
    arrays = {f"preprocess.{key}": value for key, value in state.items()}
    block = config.get("block")
    if name == "pytorch":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
        arrays = {key: torch.tensor(value) for key, value in arrays.items()}
        x = example(name).preprocess(images, arrays, block).permute(0, 2, 3, 1).numpy()
    else:
        x = example(name).preprocess(images, arrays, block)
    np.testing.assert_allclose(x, preprocess(images), atol=1e-4)


@pytest.mark.parametrize("name", ["numpy", "pytorch"])
def test_both_start_as_the_library_does(name):
    """Kernels LeCun-normal cut off at two standard deviations, biases zero."""
    make = convnet_for((16, 16, 3), 10, width=32, depth=2, softplus=None)
    net, script = training_recipe(make, steps=2)["network"], example(name)
    if name == "pytorch":
        import torch  # pyright: ignore[reportMissingImports]

        torch.manual_seed(0)
        network = script.fresh_network(net, torch.zeros(1, 3, 16, 16), 10)
        parameters = [p.detach().numpy() for p in network.parameters()]
    else:
        parameters = script.fresh_network(net, 16, 16, 3, 10, np.random.default_rng(0))
    fans = (9 * 3, 9 * 32, 4 * 4 * 64)
    for fan_in, outputs, kernel in zip(fans, (32, 64, 10), parameters[::2], strict=True):
        assert kernel.size == fan_in * outputs
        np.testing.assert_allclose(kernel.std(), fan_in**-0.5, rtol=0.05)
        np.testing.assert_allclose(abs(kernel).max(), 2 * fan_in**-0.5 / 0.8796, rtol=0.03)
    assert not any(bias.any() for bias in parameters[1::2])


@pytest.mark.parametrize("name", ["numpy", "pytorch"])
def test_both_take_mirror_images_and_the_recipe_of_the_card(name, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(8) % 2
    images = rng.integers(0, 256, (8, 4, 6, 3)).astype(np.uint8)
    preprocess = zca(images)
    coreset = Coreset(
        preprocess(images[:2]), jnp.eye(2, dtype=jnp.float32), jnp.zeros(()), preprocess, flip=True
    )
    recipe = {"steps": 1, "steps_done": 1, "model": {"width": 2, "depth": 1}}
    result = DistillResult(coreset, coreset, coreset, ("a", "b"), recipe, {})
    export(result, tmp_path / "e")
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    script, seen = example(name), []
    monkeypatch.setattr(script, "train", lambda *arguments: seen.extend(arguments))
    script.main(tmp_path / "e", tmp_path / "test.npz")
    assert "the card states None" in capsys.readouterr().out
    arrays = [np.asarray(x) for x in seen if hasattr(x, "shape")]
    if name == "pytorch":
        arrays[0] = arrays[0].transpose(0, 2, 3, 1)
    for theirs, ours in zip(arrays, coreset.support(), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    assert any(isinstance(x, dict) and x["steps"] == 1000 for x in seen)


def exported(
    folder: Path, test: data.Dataset, *, width: int, distill_steps: int, networks: int, **options
):
    """A set distilled, evaluated and exported; the evaluation."""
    train = data.load("fashion_mnist_small", "train")
    result = distill(
        train,
        images_per_class=1,
        key=jr.key(0),
        method=frepo(outer_loss=platt_loss),
        model=convnet_for(train.image_shape, train.num_classes, width=width),
        steps=distill_steps,
        progress=False,
    )
    model = convnet_for(train.image_shape, train.num_classes, width=width, softplus=None)
    report = evaluate(
        result.coreset, test, key=jr.key(1), model=model, num_networks=networks, **options
    )
    export(result, folder / "e", evaluation=report)
    np.savez(folder / "test.npz", images=test.images, labels=test.labels)
    return report


def run(name: str, folder: Path, networks: int) -> np.ndarray:
    """The accuracies a script prints, run as a user would."""
    if name == "pytorch":
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    command = [EXAMPLES / f"train_with_{name}.py", folder / "e", folder / "test.npz", networks]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the card states 0." in done.stdout
    return np.array(re.findall(r"network \d+: ([\d.]+)", done.stdout), float)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    test = data.load("fashion_mnist_small", "test")
    options = {"steps": 200, "learning_rate": 2e-3, "progress": False}
    return folder, exported(folder, test, width=8, distill_steps=60, networks=4, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numpy", "pytorch"])
def test_both_reach_what_the_card_states(name, small):
    folder, report = small
    accuracies = run(name, folder, 2)
    assert len(accuracies) == 2
    spread = 2 * report.std
    assert 0.005 < spread < 0.08
    assert abs(accuracies.mean() - report.mean) < spread, (accuracies, report)


@pytest.mark.slow
def test_both_reach_what_the_card_states_by_the_papers_protocol(tmp_path, capsys):
    test = data.load("fashion_mnist_small", "test")
    report = exported(tmp_path, test, width=32, distill_steps=100, networks=5, progress=False)
    for name, networks in (("pytorch", 5), ("numpy", 3)):
        accuracies = run(name, tmp_path, networks)
        with capsys.disabled():
            print(f"\n{name}: {accuracies}; the library: {report.accuracies}")
        assert abs(accuracies.mean() - report.mean) < 2 * report.std, (accuracies, report)


@pytest.mark.parametrize("name", ["numpy", "pytorch"])
def test_neither_needs_the_library(name):
    source = (EXAMPLES / f"train_with_{name}.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.M))
    theirs = {"numpy": set(), "pytorch": {"torch", "safetensors"}}[name]
    assert imported == {"json", "sys", "pathlib", "numpy"} | theirs | (
        {"math"} if name == "pytorch" else set()
    )
