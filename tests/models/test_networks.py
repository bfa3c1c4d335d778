"""ResNet-18, VGG-11, AlexNet and the normalizations: counts, forward passes, and in a run."""

import dataclasses
import itertools
import json
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from _problem import exact_hypergradient
from _run import distill
from rcig_eqx import (
    Coreset,
    PoolSchedule,
    Recipe,
    coreset_optimizer,
    evaluate,
    growing_average,
    init,
    load_result,
    methods,
    platt_loss,
    step,
)
from rcig_eqx._pool import new_member, train_member
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.evaluation import train_network
from rcig_eqx.evaluation._evaluate import fresh_network
from rcig_eqx.evaluation._train_network import evaluation_schedule, training_recipe
from rcig_eqx.methods import linearize
from rcig_eqx.models import (
    Normalize,
    conv2d,
    count_parameters,
    network_for,
    split_parameters,
    training_outputs,
    with_statistics,
)
from rcig_eqx.models._network import check_independent
from rcig_eqx.run._checkpoint import arrays_of

KINDS = ("none", "batch", "instance", "layer", "group")
# The smallest of each: the side of its images, and options.
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "convnet": (8, {"width": 4, "depth": 2}),
    "resnet18": (16, {"width": 4}),
    "vgg11": (32, {"width": 4}),
    "alexnet": (8, {"width": 8}),
}


@pytest.fixture(autouse=True)
def _lax(monkeypatch):
    """The formulation that compiles fastest; tests/test_models.py has that the other equals it."""
    monkeypatch.setattr("rcig_eqx.models._conv.conv_formulation", lambda: "lax")


def small(name, normalization="none", *, channels=3, classes=3, softplus=None):
    side, options = SMALL[name]
    shape = (side, side, channels)
    return network_for(
        name, shape, classes, normalization=normalization, softplus=softplus, **options
    )


def some_images(name, n=5, *, channels=3, dtype: type = np.float32):
    side, _ = SMALL[name]
    return noise(n, side, side, channels, dtype=dtype)


def made(make, dtype: type = np.float32, seed=0):
    """A network with NumPy's numbers: JAX compiles its own for every shape."""
    rng = np.random.default_rng(seed)

    def number(path, x):
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        kernel, positive = path[-1].name == "kernel", path[-1].name in ("scale", "variance")
        spread = np.prod(x.shape[:-1]) ** -0.5 if kernel else 0.1
        return jnp.asarray(positive + spread * rng.normal(size=x.shape), dtype)

    shapes = eqx.filter_eval_shape(make, jr.key(0))
    return jax.tree_util.tree_map_with_path(number, shapes)


def noise(*shape, seed=0, dtype: type = np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def statistics(model):
    return jax.tree.leaves(split_parameters(model)[1])


# Counts


def counted(name, kind):
    """By hand, for 32×32 RGB images, ten classes and the usual widths."""
    sizes, head, extra, shortcut_sides = [3] * 8, 512, [], []
    if name == "convnet":
        maps, sides, head = [128, 256, 512], [32, 16, 8], 4 * 4 * 512
    elif name == "alexnet":
        maps, sides, head = [128, 192, 256, 192, 192], [32, 16, 8, 8, 8], 4 * 4 * 192
        sizes = [5, 5, 3, 3, 3]
    elif name == "vgg11":
        maps, sides = [64, 128, 256, 256] + [512] * 4, [32, 16, 8, 8, 4, 4, 2, 2]
    else:
        maps, sizes = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4, [3] * 17
        sides = [32] * 5 + [16] * 4 + [8] * 4 + [4] * 4
        extra, shortcut_sides = [(64, 128), (128, 256), (256, 512)], [16, 8, 4]
    kernels = sum(k * k * i * o for k, (i, o) in zip(sizes, itertools.pairwise([3, *maps])))  # noqa: B905
    kernels += sum(i * o for i, o in extra)
    maps, sides = maps + [o for _, o in extra], sides + shortcut_sides
    biases = sum(maps) if name != "resnet18" or kind == "none" else 0
    elementwise = sum(c * s * s for c, s in zip(maps, sides, strict=True))
    scales = {"none": 0, "layer": elementwise}.get(kind, sum(maps))
    return kernels + biases + 2 * scales + head * 10 + 10


@pytest.mark.parametrize("name", SMALL)
def test_parameters_of_the_usual_sizes(name):
    known = {"resnet18": 11_173_962, "vgg11": 9_231_114}  # of others' for CIFAR-10
    assert counted(name, "batch") == known.get(name, counted(name, "batch"))
    for kind in KINDS:
        make = network_for(name, (32, 32, 3), 10, normalization=kind)
        shapes = eqx.filter_eval_shape(lambda k, f=make: split_parameters(f(k))[0], jr.key(0))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == counted(name, kind)


def test_a_convnet_of_constant_width():
    make = network_for("ConvNet", (32, 32, 3), 10, normalization="instance", growth=1)
    model = made(make)
    assert count_parameters(model) == 320_010  # what Zhao and Bilen's has
    for depth in (3, 4, 5):
        deep = made(network_for("convnet", (64, 64, 3), 2, width=1, depth=depth, growth=1))
        assert [block.kernel.shape[-1] for block in deep.blocks] == [1] * depth


def test_one_initializer():
    make = network_for("resnet18", (16, 16, 3), 10, normalization="batch")
    parameters, _ = split_parameters(make(jr.key(0)))
    for path, x in jax.tree_util.tree_leaves_with_path(parameters):
        if path[-1].name == "kernel":
            fan_in = np.prod(x.shape[:-1])
            np.testing.assert_allclose(float(x.std()) * fan_in**0.5, 1, rtol=0.1)
        else:
            assert (x == (1 if path[-1].name == "scale" else 0)).all()


# Forward passes

CASES = [("convnet", kind, 3) for kind in KINDS]
CASES += [("resnet18", kind, 3) for kind in ("none", "batch", "instance")]
CASES += [("vgg11", "batch", 3), ("vgg11", "instance", 1), ("alexnet", "none", 3)]
CASES += [("alexnet", "batch", 1)]


@pytest.mark.parametrize(("name", "kind", "channels"), CASES)
def test_forward_passes_are_those_of_pytorch(name, kind, channels):
    """With stored statistics, and in training with a batch's, which are then stored."""
    pytest.importorskip("torch")
    import _torch_networks as reference

    side, _ = SMALL[name]
    with jax.enable_x64(True):
        model = made(small(name, kind, channels=channels), np.float64)
        images = some_images(name, channels=channels, dtype=np.float64)
        body, norms = reference.same_network(name, kind, (side, side, channels), model)
        mine, mine_in_training, updated = eqx.filter_jit(
            lambda m, x: (m(x), *training_outputs(m, x, rate=1.0))
        )(model, images)
        assert mine.dtype == jnp.float64
        np.testing.assert_allclose(mine, reference.outputs(body.eval(), model, images), rtol=1e-9)
        in_training = reference.outputs(body.train(), model, images)
        np.testing.assert_allclose(mine_in_training, in_training, rtol=1e-8)
        for theirs, ours in zip(norms, reference.normalizations(updated), strict=True):
            if ours.statistics is None:
                continue
            np.testing.assert_allclose(
                ours.statistics.mean, np.asarray(theirs.running_mean), rtol=1e-8
            )


@pytest.mark.parametrize("name", ["vgg11", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_training_with_batch_normalization_is_that_of_pytorch(name):
    """Steps by the batch's statistics, then outputs by those that were stored on the way."""
    pytest.importorskip("torch")
    import _torch_networks as reference

    side, _ = SMALL[name]
    steps, peak = 13, 1e-2
    with jax.enable_x64(True):
        model = made(small(name, "batch"), np.float64)
        images, tests = (some_images(name, dtype=np.float64) + i for i in (0.0, 0.3))
        labels = jnp.asarray(noise(len(images), 3, seed=1), jnp.float64)
        train = lambda m: train_network(  # noqa: E731
            m, images, labels, steps=steps, learning_rate=peak, key=jr.key(0)
        )
        mine, before = eqx.filter_jit(lambda m, x: (train(m)(x), m(x)))(model, tests)
        rates = evaluation_schedule(steps, peak)(jnp.arange(steps))
        body, norms = reference.same_network(name, "batch", (side, side, 3), model)
        args = (body, norms, model, images, labels, rates, tests)
        theirs = reference.trained_outputs(*args)
    assert np.abs(mine - before).max() > 0.1  # it has been trained
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


# Statistics


def test_statistics_are_no_parameters():
    model, plain = made(small("convnet", "batch")), made(small("convnet"))
    scales = 2 * (4 + 8)
    assert count_parameters(model) == count_parameters(plain) + scales
    parameters, rest = split_parameters(model)
    assert eqx.tree_equal(eqx.combine(parameters, rest), model)
    assert [x.shape for x in jax.tree.leaves(rest)] == [(4,), (4,), (8,), (8,)]
    assert not jax.tree.leaves(split_parameters(parameters)[1])
    displacement = linearize(model, some_images("convnet")).vjp(jnp.ones((5, 3)))
    assert jax.tree.structure(displacement) == jax.tree.structure(parameters)


def test_features_are_by_stored_statistics_and_training_by_the_batch():
    model, images = made(small("convnet", "batch")), some_images("convnet")
    check_independent(model, images[0])
    outputs, updated = training_outputs(model, images, rate=0.1)
    whole = with_statistics(model, images)
    np.testing.assert_allclose(whole(images), outputs, rtol=1e-5, atol=1e-6)
    assert not np.allclose(model(images), outputs, rtol=1e-2)
    for stored, a, b in zip(*map(statistics, (model, updated, whole)), strict=True):
        np.testing.assert_allclose(a, 0.9 * stored + 0.1 * b, rtol=1e-5, atol=1e-7)
    moments = [block.normalize.statistics for block in whole.blocks]
    x = conv2d(images, model.blocks[0].kernel, padding=1) + model.blocks[0].bias[None, None, None]
    np.testing.assert_allclose(moments[0].mean, x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments[0].variance, x.var((0, 1, 2)), rtol=1e-4)
    plain = made(small("convnet", "instance"))
    assert with_statistics(plain, images) is plain
    assert training_outputs(plain, images, rate=0.1)[1] is plain


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_jit_vmap_and_strict_promotion(kind):
    """Several networks at once, their statistics too."""
    images = some_images("convnet")

    def train(model):
        outputs, model = training_outputs(model, images, rate=jnp.asarray(0.3))
        return outputs, model(images)

    each = [made(small("convnet", kind), seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        together = eqx.filter_jit(eqx.filter_vmap(train))(stacked)
    for a, b in zip(together, train(each[1]), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_the_hypergradient_is_that_of_frozen_statistics(kind):
    """Against automatic differentiation through dense kernel ridge regression, in float64."""
    with jax.enable_x64(True):
        options = {"width": 2, "depth": 1, "softplus": 3.0, "normalization": kind}
        make = network_for("convnet", (6, 6, 1), 2, **options)
        model = made(make, np.float64)
        images, batch, labels = (
            noise(*shape, seed=i, dtype=np.float64)
            for i, shape in enumerate([(3, 6, 6, 1), (4, 6, 6, 1), (3, 2)])
        )
        coreset = Coreset(images, labels, jnp.asarray(0.3))
        targets = jax.nn.one_hot(jnp.arange(4) % 2, 2, dtype=jnp.float64)
        model = with_statistics(model, images)
        parameters, rest = split_parameters(model)
        theta, unravel = jax.flatten_util.ravel_pytree(parameters)

        def jacobian(X):
            return jax.jacrev(lambda t: eqx.combine(unravel(t), rest)(X).ravel())(theta)

        def loss(coreset):
            X, y = coreset.support()
            J_S, J_T = jacobian(X), jacobian(batch)
            K = J_S @ J_S.T + 5e-3 * len(y) * jnp.eye(y.size)
            f_T = (J_T @ J_S.T @ jnp.linalg.solve(K, y.ravel())).reshape(targets.shape)
            return platt_loss(f_T, targets, coreset.log_temperature)

        dense = jax.jit(jax.grad(loss))(coreset)
        result = eqx.filter_jit(exact_hypergradient)(
            model, coreset, batch, targets, l2_rate=5e-3, solver=lx.Cholesky()
        )
        for a, b in zip(*map(jax.tree.leaves, (result.gradient, dense)), strict=True):
            assert jnp.abs(b).max() > 0
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10 * float(jnp.abs(b).max()))


# In a run

SIDE, CLASSES = 8, 2
RNG = np.random.default_rng(0)
LABELS = np.arange(40) % CLASSES
IMAGES = RNG.integers(0, 100, (40, SIDE, SIDE, 1)) + 100 * LABELS[:, None, None, None]
IMAGES = IMAGES.astype(np.uint8)
TRAIN = (IMAGES, LABELS)
SHAPE = (SIDE, SIDE, 1)
BRIEF: dict[str, Any] = {"num_networks": 2, "steps": 3, "progress": False}


def tiny(name="convnet", kind="batch", **options):
    depth = {"depth": 1} if name == "convnet" else {}
    return network_for(name, SHAPE, CLASSES, width=4, normalization=kind, **depth, **options)


def run(model, method, steps=2):
    pool = PoolSchedule(size=2, max_steps=3)
    return distill(TRAIN, images_per_class=2, key=jr.key(0), model=model, method=method,
                   steps=steps, batch_size=8, pool=pool, progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def result():
    """A set distilled with batch normalization."""
    return run(tiny(), methods.frepo())


def test_distilled_with_batch_normalization(result):
    assert np.isfinite(result.coreset.images).all()
    assert not result.history["rejected"].any()
    assert not np.array_equal(result.coreset.images, result.baseline.images)
    model = {"name": "ConvNet", "width": 4, "depth": 1, "normalization": "batch"}
    assert result.recipe["model"] == model | {"activation": "relu"}


def test_a_step_is_at_the_statistics_of_the_set_as_it_is():
    """Of a fresh network too, and whatever the pool has stored."""
    seen = []

    class Spy(methods.AbstractMethod):
        def hypergradient(self, model, coreset, images, targets, *, key):
            jax.debug.callback(lambda *xs: seen.append(xs), *statistics(model))
            return Hypergradient(jnp.asarray(0.0), jax.tree.map(jnp.ones_like, coreset), {})

    coreset = Coreset(noise(4, *SHAPE), noise(4, CLASSES), jnp.asarray(0.0))
    schedule = PoolSchedule(size=1, min_visit=1, max_visit=1)
    recipe = Recipe(Spy(), tiny(), coreset_optimizer(), schedule, growing_average())
    state = init(coreset, recipe, key=jr.key(2))
    batch = (noise(5, *SHAPE, seed=1), jnp.arange(5) % CLASSES)
    take = eqx.filter_jit(step)
    for _ in range(2):
        model = jax.tree.map(lambda x: x[0], state.pool.model)
        expected = statistics(with_statistics(model, state.psi.images))
        state, _ = take(state, batch)
        jax.effects_barrier()
        for a, b in zip(seen.pop(), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    named = [name for name in arrays_of(state) if "statistics" in name]
    assert len(named) == 2  # a checkpoint has them, and the optimizer no moments of them
    trained = jax.tree.map(lambda x: x[0], state.pool.model)
    fresh = made(tiny())
    for a, b in zip(*map(statistics, (trained, fresh)), strict=True):
        assert not np.allclose(a, b)


def test_evaluated_with_the_normalization_distilled_with(result):
    """The paper's appendix C.1: an evaluation that dropped it without a word."""
    report = evaluate(result, TRAIN, key=jr.key(1), **BRIEF)
    network = report.training["network"]
    assert (network["name"], network["normalization"]) == ("ConvNet", "batch")
    assert (network["width"], network["depth"], network["activation"]) == (4, 1, "relu")
    bare = evaluate(result.coreset, TRAIN, key=jr.key(1), model=tiny(kind="none"), **BRIEF)
    assert bare.training["network"]["normalization"] == "none"


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("convnet", kind) for kind in KINDS), ("resnet18", "batch"), ("alexnet", "instance")],
)
def test_the_normalization_asked_for_is_there(result, name, kind):
    """What is made by name, described and built anew does not see how bright its inputs are."""
    make = fresh_network(result, architecture=name, normalization=kind, width=4)
    network = training_recipe(make, steps=1)["network"]
    assert (network["name"].lower(), network["normalization"]) == (name, kind)
    model, images = made(make), noise(6, *SHAPE)
    f = eqx.filter_jit(lambda model, x: training_outputs(model, x, rate=1.0)[0])
    same, scaled = (f(model, brightness * images) for brightness in (30, 90))
    assert np.allclose(same, scaled, rtol=0.02, atol=0.02) == (kind != "none")


def test_other_networks_take_the_normalization_along(result):
    known = training_recipe(fresh_network(result, architecture="AlexNet"), steps=1)["network"]
    assert known.items() >= {"name": "AlexNet", "width": 128, "normalization": "batch"}.items()
    again = training_recipe(fresh_network(result, normalization="none"), steps=1)["network"]
    assert again.items() >= {"name": "ConvNet", "width": 4, "normalization": "none"}.items()
    own = dataclasses.replace(result, recipe=result.recipe | {"model": {"name": "AlexNet"}})
    assert training_recipe(fresh_network(own), steps=1)["network"]["name"] == "ConvNet"  # not ours
    unknown = training_recipe(fresh_network(result.coreset), steps=1)["network"]
    assert unknown.items() >= {"name": "ConvNet", "width": 128, "normalization": "none"}.items()


def test_trained_networks_keep_running_statistics():
    images, labels = noise(6, *SHAPE), noise(6, CLASSES, seed=1)
    model = tiny()(jr.key(2))
    train = eqx.filter_jit(
        lambda m, steps: train_network(m, images, labels, steps=steps, key=jr.key(0))
    )
    once = train(model, 1)
    for a, b in zip(*map(statistics, (once, with_statistics(model, images))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    long = train(model, 60)
    in_training, _ = training_outputs(long, images, rate=0.1)
    np.testing.assert_allclose(long(images), in_training, rtol=0.05, atol=0.05)
    schedule = PoolSchedule(size=1)
    member = new_member(tiny(), schedule, key=jr.key(2))
    member = eqx.filter_jit(train_member)(member, images, labels, 1, schedule)
    for a, b in zip(*map(statistics, (member.model, once)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # a minute or more to compile
def test_a_run_with_resnet18():
    result = run(tiny("resnet18"), methods.frepo())
    assert np.isfinite(result.coreset.images).all()
    assert not result.history["rejected"].any()
    report = evaluate(result, TRAIN, key=jr.key(1), **BRIEF | {"num_networks": 1})  # pyright: ignore[reportArgumentType]
    assert report.training["network"]["name"] == "ResNet18"
    assert report.training["network"]["normalization"] == "batch"


def test_the_command_line(tmp_path, capsys):
    from rcig_eqx._cli import main

    data, out = tmp_path / "shades.npz", tmp_path / "out"
    np.savez(data, images=IMAGES, labels=LABELS)
    given = ["--architecture", "ConvNet", "--normalization", "group"]
    given += ["--width", "4", "--depth", "1"]
    brief = ["--no-evaluate", "--steps", "1", "--method", "frepo", "--out", str(out)]
    with pytest.raises(SystemExit, match="0"):
        main(["distill", str(data), *given, *brief])
    file = out / "distilled.safetensors"
    assert load_result(file).recipe["model"]["normalization"] == "group"
    report = tmp_path / "report.json"
    rest = ["--data", str(data), "--split", "train", "--networks", "1", "--steps", "1"]
    rest += ["--json", str(report)]
    for options, says in (
        ([], "(ConvNet, group normalization)"),
        (["--normalization", "none"], "(ConvNet, without normalization)"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["evaluate", str(file), *rest, *options])
        assert says in capsys.readouterr().out
        network = json.loads(report.read_text())["training"]["network"]
        assert network["name"] in says
        assert network["normalization"] == ("none" if options else "group")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(file), *rest, "--normalization", "btach"])
    assert "did you mean 'batch'" in capsys.readouterr().err


WRONG = {
    "architecture is 'resnet': did you mean 'resnet18'": lambda: tiny("resnet"),
    "normalization is 'instancenorm': did you mean 'instance'": lambda: tiny(kind="instancenorm"),
    "depth is no option of VGG11: leave it out": lambda: network_for("vgg11", SHAPE, 2, depth=2),
    "too small for this network": lambda: network_for("vgg11", SHAPE, 2, width=2)(jr.key(0)),
    "make 4 groups": lambda: Normalize("group", (2, 2, 6)),
    "no variance of its own": lambda: Normalize("instance", (1, 1, 4)),
    "must be even": lambda: network_for("alexnet", SHAPE, 2, width=3)(jr.key(0)),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_cannot_be_made_is_refused(says):
    with pytest.raises(ValueError, match=says):
        WRONG[says]()
