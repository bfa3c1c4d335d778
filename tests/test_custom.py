"""Pieces of one's own in `distill`: losses, networks, optimizer, start, preprocessing, ψ."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import _run
import rcig_eqx
from _problem import exact_hypergradient, head_hypergradient, implicit_hypergradient, random_problem
from rcig_eqx import (
    Coreset,
    PoolSchedule,
    Recipe,
    SquaredError,
    evaluate,
    init,
    load_result,
    platt_loss,
)
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.data import AbstractPreprocess, DataError, Dataset, Identity, load, standardize
from rcig_eqx.initializers import AbstractInitializer, Given
from rcig_eqx.methods import (
    AbstractMethod,
    Staged,
    cig,
    default_method,
    frepo,
    rcig,
    rcig_paper,
    ridge_head,
    rig,
    staged,
    vig,
)
from rcig_eqx.models import (
    AbstractNetwork,
    Head,
    Network,
    average_pool,
    convnet_for,
    partition,
    split_network,
)
from rcig_eqx.models._network import check_independent
from rcig_eqx.parameterizations import AbstractParameterization
from rcig_eqx.solvers import Adam, ConjugateGradient, Dual

N, BATCH, SIZE, L2_RATE = 3, 5, 6, 0.02
CG = ConjugateGradient(1e-13, 2000)


def network(key) -> Network:
    """The least there is: pixels and a head."""
    return Network(jnp.ravel, eqx.nn.Linear(49, 3, key=key))


class Known(AbstractMethod):
    """A hypergradient that is quick to compile and known: the cosine of every number."""

    def hypergradient(self, model, coreset, images, targets, *, key):
        return Hypergradient(jnp.zeros(()), jax.tree.map(jnp.cos, coreset), {})


@pytest.fixture(scope="module")
def setting():
    """A network, a distilled set and an outer batch, all float64 and random."""
    with jax.enable_x64(True):
        return random_problem(N, BATCH, SIZE, width=2, depth=1)


@pytest.fixture(scope="module")
def train():
    """Three classes at a quarter of the size."""
    whole = load("fashion_mnist_small", "train")
    chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:8] for c in range(3)])
    return Dataset(whole.images[chosen, ::4, ::4], whole.labels[chosen], whole.class_names[:3])


def distill(train, **changed) -> rcig_eqx.DistillResult:
    given = {
        "images_per_class": 1,
        "key": jr.key(0),
        "model": network,
        "method": Known(),
        "steps": 2,
        "batch_size": 6,
        "pool": PoolSchedule(size=2, max_visit=1),
        "progress": False,
    }
    return _run.distill(train, **(given | changed))


def finite(result: rcig_eqx.DistillResult) -> bool:
    moved = np.abs(np.asarray(result.last.images - result.baseline.images)).max()
    return bool(np.isfinite(result.history["loss"]).all() and 0 < moved < 1)


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def relative(a, b) -> float:
    a, b = (np.asarray(ravel_pytree(x)[0]) for x in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def jacobian_of(model):
    """The Jacobian of a network's outputs at some images, `[n·classes, parameters]`."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    theta, unravel = ravel_pytree(parameters)
    return lambda X: jax.jacrev(lambda t: eqx.combine(unravel(t), static)(X).ravel())(theta)


# The inner loss, in float64


def weights_of(shape) -> jax.Array:
    return jnp.exp(jr.normal(jr.key(3), shape))


def test_a_weighted_squared_error_is_what_it_says():
    f, y = np.arange(6.0).reshape(3, 2), np.ones((3, 2))
    rows, columns = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0, 4.0]])
    for weights in (rows, columns, rows * columns):
        expected = 0.5 * np.sum(weights * (y - f) ** 2)
        loss = SquaredError(jnp.asarray(weights))
        assert float(loss(jnp.asarray(f), jnp.asarray(y))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "solver", "flip"),
    [
        ((N, 1), lx.Cholesky(), True),
        pytest.param((1, 3), ConjugateGradient(1e-12, 500), False, marks=pytest.mark.slow),
    ],
)
def test_weighted_exact_equals_autodiff_through_closed_form(setting, shape, solver, flip):
    """(J Jᵀ + λ diag(w)⁻¹) α = y, in the dual."""
    with jax.enable_x64(True):
        model, coreset, images, targets = setting
        coreset = Coreset(coreset.images, coreset.labels, coreset.log_temperature, flip=flip)
        weights, jacobian = weights_of(shape), jacobian_of(model)

        def loss(coreset):
            X, y = coreset.support()
            w = jnp.broadcast_to(weights, coreset.labels.shape)
            w = jnp.concatenate([w, w]) if flip else w
            J_S, J_T = jacobian(X), jacobian(images)
            K = J_S @ J_S.T + L2_RATE * len(y) * jnp.diag(1 / w.ravel())
            f_T = (J_T @ J_S.T @ jnp.linalg.solve(K, y.ravel())).reshape(targets.shape)
            return platt_loss(f_T, targets, coreset.log_temperature)

        value, expected = jax.jit(jax.value_and_grad(loss))(coreset)
        given = {"l2_rate": L2_RATE, "inner_loss": SquaredError(weights), "solver": solver}
        exact = jax.jit(functools.partial(exact_hypergradient, **given))
        got = exact(model, coreset, images, targets)
        assert float(got.value) == pytest.approx(float(value), rel=1e-10)
        for name in ("images", "labels", "log_temperature"):
            assert relative(getattr(got.gradient, name), getattr(expected, name)) < 1e-7
        plain = jax.jit(functools.partial(exact_hypergradient, l2_rate=L2_RATE))
        assert relative(plain(model, coreset, images, targets).gradient, expected) > 1e-2


def test_weights_reach_the_primal_route_and_the_ridge_head(setting):
    """The reparameterized problem, by weighted ridge heads, has the same minimum."""
    with jax.enable_x64(True):
        model, coreset, images, targets = setting
        loss = SquaredError(weights_of((N, 3)))
        given = {"l2_rate": L2_RATE, "inner_loss": loss}
        exact = functools.partial(exact_hypergradient, solver=lx.Cholesky(), **given)
        expected = jax.jit(exact)(model, coreset, images, targets)
        primal = functools.partial(implicit_hypergradient, inner=CG, solver=CG, **given)
        got = jax.jit(primal)(model, coreset, images, targets)
        assert relative(got.gradient, expected.gradient) < 1e-7

        h, w, y = model.features(coreset.images), loss.weights, coreset.labels
        assert w is not None
        head = ridge_head(h, y, 0.3, weights=w)
        for c in range(3):  # the normal equations, class by class
            normal = (h.T * w[:, c]) @ h + 0.3 * jnp.eye(h.shape[1])
            assert relative(head[:, c], jnp.linalg.solve(normal, h.T @ (w[:, c] * y[:, c]))) < 1e-9

        def through_head(coreset):
            h = model.features(coreset.images)
            kernel = ridge_head(h, coreset.labels, L2_RATE * N, weights=w)
            return platt_loss(model.features(images) @ kernel, targets, coreset.log_temperature)

        frozen = jax.jit(functools.partial(head_hypergradient, **given))
        gradient = jax.jit(jax.grad(through_head))(coreset)
        assert relative(frozen(model, coreset, images, targets).gradient, gradient) < 1e-9


def cross_entropy(predictions, labels):
    """Of softmax against the labels as logits, so that every label is a distribution."""
    return jnp.sum(optax.softmax_cross_entropy(predictions, jax.nn.softmax(2 * labels)))


def test_cross_entropy_equals_finite_differences_of_the_whole_map(setting):
    """Newton's method to convergence in a dense Jacobian, then the outer loss, perturbed."""
    with jax.enable_x64(True):
        model, coreset, images, targets = setting
        l2_rate = 0.3
        jacobian, l2 = jacobian_of(model), l2_rate * N
        J_T = jacobian(images)

        @jax.jit
        def whole(coreset):
            J = jacobian(coreset.images)

            def inner(theta):
                f = (J @ theta).reshape(coreset.labels.shape)
                return cross_entropy(f, coreset.labels) + 0.5 * l2 * theta @ theta

            def newton(_, theta):
                H, slope = jax.hessian(inner)(theta), jax.grad(inner)(theta)
                return theta - jnp.linalg.solve(H, slope)

            theta = jax.lax.fori_loop(0, 12, newton, jnp.zeros(J.shape[1]))
            f_T = (J_T @ theta).reshape(targets.shape)
            value = platt_loss(f_T, targets, coreset.log_temperature)
            return value, jnp.linalg.norm(jax.grad(inner)(theta))

        value, slope = whole(coreset)
        assert float(slope) < 1e-10
        losses = {"inner_loss": cross_entropy, "outer_loss": platt_loss}
        method = cig(**losses, inner=Adam(1e-2, 3000), solver=CG, l2_rate=l2_rate)
        hypergradient = eqx.filter_jit(method.hypergradient)
        got = hypergradient(model, coreset, images, targets, key=jr.key(0))
        assert float(got.stats["inner_residual"]) < 1e-7
        assert float(got.value) == pytest.approx(float(value), rel=1e-7)
        for seed in range(3):
            draw = functools.partial(jr.normal, jr.key(seed))
            direction = jax.tree.map(lambda x, draw=draw: draw(x.shape, x.dtype), coreset)
            move = lambda s, d=direction: jax.tree.map(lambda x, y: x + s * y, coreset, d)  # noqa: E731
            difference = (whole(move(1e-5))[0] - whole(move(-1e-5))[0]) / 2e-5
            along = ravel_pytree(got.gradient)[0] @ ravel_pytree(direction)[0]
            np.testing.assert_allclose(along, difference, rtol=1e-5)


def test_the_type_of_the_inner_loss_decides_and_wrong_methods_say_so():
    squared = SquaredError(jnp.ones((1, 3)))
    chosen = default_method(10, inner_loss=squared)
    assert isinstance(chosen, Staged)
    assert chosen.first.inner_loss is chosen.then.inner_loss is squared  # pyright: ignore[reportAttributeAccessIssue]
    chosen = default_method(10, inner_loss=cross_entropy)
    assert (chosen.linearized, chosen.reparameterized) == (True, False)  # pyright: ignore[reportAttributeAccessIssue]

    class Subclass(SquaredError):
        def __call__(self, predictions, labels):
            return jnp.sum((predictions - labels) ** 4)

    adams = {"inner": Adam(1e-3), "solver": Adam(1e-3)}
    for loss in (cross_entropy, Subclass()):
        for method in (rcig, frepo, rcig_paper, functools.partial(rig, **adams)):
            with pytest.raises(ValueError, match=r"closed form.*methods\.cig\(inner_loss=\.\.\.\)"):
                method(inner_loss=loss)
        with pytest.raises(ValueError, match=r"is not quadratic: pass Adam\(\)"):
            cig(inner_loss=loss, inner=CG)
        with pytest.raises(ValueError, match="of a SquaredError: pass another"):
            cig(inner_loss=loss, solver=Dual())
        vig(inner_loss=loss)
    for weights, says in (
        (jnp.ones(3), r"pass \[n 1\]"),
        (jnp.zeros((1, 3)), "must be positive"),
        (jnp.full((1, 3), jnp.nan), "must be positive"),
    ):
        with pytest.raises(ValueError, match=says):
            SquaredError(weights)


# Losses in distill


def class_weighted(predictions, targets, log_temperature):
    losses = optax.softmax_cross_entropy(predictions * jnp.exp(log_temperature), targets)
    return jnp.mean(losses * (targets @ jnp.array([10.0, 0.1, 0.1])))


A = Adam(1e-3, 2)
METHODS = {
    "default": default_method(2, outer_loss=class_weighted, inner_loss=SquaredError(
        jnp.array([[1.0], [2.0], [3.0]]))),
    "rcig_paper": rcig_paper(outer_loss=class_weighted, inner=A, solver=A),
    "vig": vig(outer_loss=class_weighted, inner_loss=cross_entropy, inner=A, solver=A),
    "cig": default_method(2, outer_loss=class_weighted, inner_loss=cross_entropy),
}  # fmt: skip


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("rcig_paper", "vig")]


@pytest.mark.parametrize("name", ["default", "cig", *SLOW])
def test_own_losses_in_distill(train, name):
    result = distill(train, method=METHODS[name])
    assert finite(result)
    assert "class_weighted" in str(result.recipe["method"])
    assert name in ("default", "rcig_paper") or "cross_entropy" in str(result.recipe["method"])
    again = distill(train, method=METHODS[name])  # the first run took none of its arrays away
    assert same(again.coreset, result.coreset)


@pytest.mark.slow
def test_class_weights_move_the_set_towards_their_class(train):
    """A set distilled for the first class alone predicts it better than one for all."""
    images = jnp.asarray(train.images, jnp.float32) / 255
    targets, model = jax.nn.one_hot(jnp.asarray(train.labels), 3), network(jr.key(5))
    losses = {}
    for loss in (platt_loss, class_weighted):
        run = distill(train, method=frepo(outer_loss=loss), steps=20, preprocess=Identity())
        f = model.features(images) @ ridge_head(
            model.features(run.last.images), run.last.labels, 5e-4 * 3
        )
        losses[loss] = float(class_weighted(f, targets, jnp.zeros(())))
    assert losses[class_weighted] < losses[platt_loss]


wrong: Any = lambda predictions, targets: predictions - targets  # noqa: E731


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (staged(frepo(outer_loss=wrong), rcig(), 1), "outer_loss cannot be called"),
        (rcig(inner_loss=SquaredError(jnp.ones((2, 1)))), r"weights have shape \(2, 1\)"),
        (cig(inner_loss=lambda f, y: (f - y).sum(1)), "inner_loss returned .*, not one number"),
    ],
)
def test_losses_that_do_not_fit_are_refused_before_the_first_step(train, method, says):
    with pytest.raises(ValueError, match=says):
        distill(train, method=method)


# Networks


class Small(eqx.Module):
    """A module as Equinox users write them: one image, channels first."""

    conv: eqx.nn.Conv2d
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear
    after: str = eqx.field(static=True)

    def __init__(self, key, after="nothing"):
        keys = jr.split(key)
        self.conv = eqx.nn.Conv2d(1, 2, 3, key=keys[0])
        self.drop = eqx.nn.Dropout()
        self.last = eqx.nn.Linear(2 * 25, 3, key=keys[1])
        self.after = after

    def __call__(self, image):
        f = self.last(self.drop(jax.nn.relu(self.conv(image))).ravel())
        return jax.nn.softmax(f) if self.after == "softmax" else f


def split(key) -> Network:
    return split_network(Small(key), lambda m: m.last, image_shape=(7, 7, 1), channels_first=True)


def parts(key) -> Network:
    keys = jr.split(key)
    mlp = eqx.nn.MLP(49, 5, 5, depth=1, activation=jax.nn.relu, key=keys[0])
    body = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), mlp])
    return Network(body, eqx.nn.Linear(5, 3, use_bias=False, key=keys[1]))


def test_a_split_module_is_the_module():
    module, whole = eqx.nn.inference_mode(Small(jr.key(0))), split(jr.key(0))
    images = jr.normal(jr.key(1), (4, 7, 7, 1))
    expected = jax.vmap(module)(jnp.moveaxis(images, -1, 1))
    np.testing.assert_allclose(whole(images), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(partition(whole)[1].head.kernel, module.last.weight.T)
    mlp = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(49, 3, 5, 2, key=jr.key(0))])
    whole = split_network(mlp, lambda m: m.layers[1].layers[-1], image_shape=(7, 7, 1))
    np.testing.assert_allclose(whole(images), jax.vmap(mlp)(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [split, parts])
def test_own_networks_are_distilled_and_evaluated(train, model):
    """The costly halves apart: one network through the exact method, one through `evaluate`."""
    method = rcig(solver=lx.Cholesky()) if model is split else Known()
    result = distill(train, model=model, method=method)
    assert finite(result)
    assert result.recipe["model"] == {"name": "Network"}
    if model is split:
        return
    report = evaluate(result, train, key=jr.key(0), model=model, num_networks=1, steps=2,
                      loss=cross_entropy, progress=False)  # fmt: skip
    assert 0 <= report.mean <= 1


class Centered(AbstractNetwork):
    """Features that depend on the batch, as batch normalization's do."""

    head: Head

    def features(self, images):
        x = images.reshape(len(images), -1)
        return x - x.mean(0, keepdims=True)


def batch_norm(key):
    return Network(eqx.nn.Sequential([eqx.nn.BatchNorm(1, "b", mode="batch")]),
                   eqx.nn.Linear(49, 3, key=key))  # fmt: skip


def softmaxed(key):
    return split_network(
        Small(key, after="softmax"), lambda m: m.last, image_shape=(7, 7, 1), channels_first=True
    )


WRONG = {
    "depends": (lambda key: Centered(Head(49, 3, key=key)), "beside another"),
    "state": (batch_norm, "layer with a state.*GroupNorm"),
    "softmax": (softmaxed, "not the last thing the module does"),
    "sizes": (lambda key: Network(jnp.ravel, eqx.nn.Linear(9, 3, key=key)), "49 features"),
    "channels": (lambda key: Network(Small(key).conv, Small(key).last), "does not take images"),
}


@pytest.mark.parametrize("name", WRONG)
def test_networks_that_are_none_are_refused(train, name):
    model, says = WRONG[name]
    with pytest.raises(ValueError) as raised:  # noqa: PT011  its message or its cause's
        distill(train, model=model)
    message = f"{raised.value} {raised.value.__cause__}"
    assert says.replace(".*", "") in message or all(s in message for s in says.split(".*"))


def test_ready_networks_are_independent_of_the_batch():
    check_independent(convnet_for((7, 7, 1), 3, 2, 1)(jr.key(0)), jr.normal(jr.key(1), (7, 7, 1)))


# Optimizer, start, preprocessing


def test_any_optax_optimizer(train):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=1e-3))
    result = distill(train, optimizer=optimizer)
    assert finite(result)
    assert np.abs(np.asarray(result.last.images - result.baseline.images)).max() < 0.03


def test_an_optimizer_that_asks_for_the_loss_gets_it(train):
    """`value` is the outer loss of the step, `grad` its gradient in ψ."""
    distill(train, optimizer=optax.chain(optax.adam(0.01), optax.contrib.reduce_on_plateau()))

    def update(gradient, state, psi, *, value, grad):
        same = [jnp.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (gradient, grad)))]  # noqa: B905
        return jax.tree.map(jnp.zeros_like, psi), (value, jnp.stack(same).all())

    start = lambda psi: (jnp.zeros(()), jnp.asarray(False))  # noqa: E731
    losses = []
    optimizer = optax.GradientTransformationExtraArgs(start, update)  # pyright: ignore[reportArgumentType]
    distill(
        train,
        steps=3,
        method=frepo(outer_loss=platt_loss),
        optimizer=optimizer,
        callbacks=[lambda p: losses.append([*map(float, (p.metrics["loss"], *p.state.opt_state))])],
    )
    assert len(losses) == 3
    assert all(loss == value != 0 and same == 1.0 for loss, value, same in losses)


def test_an_optimizer_that_asks_for_more_is_refused(train):
    with pytest.raises(ValueError, match=r"optimizer fails .*value_fn"):
        distill(train, optimizer=optax.lbfgs())


def test_a_number_of_a_set_may_be_a_python_float():
    """It is learned from the first step on, in the type it will keep."""
    start = Coreset(jnp.ones((2, 7, 7, 1)), jnp.eye(2), jnp.zeros(()))
    start = eqx.tree_at(lambda c: c.log_temperature, start, 0.5)
    recipe = Recipe(frepo(), convnet_for((7, 7, 1), 2, 2, 1))
    state = init(start, recipe, key=jr.key(0))
    assert state.psi.log_temperature.dtype == jnp.float32
    assert not state.psi.log_temperature.weak_type


class Blank(AbstractInitializer):
    right: bool = True

    def __call__(self, train, like, preprocess, *, key) -> Any:
        images = 0.1 * jr.normal(key, like.images.shape)
        return Coreset(images, jnp.eye(3), jnp.zeros(())) if self.right else jnp.zeros(3)


def test_a_start_of_ones_own(train):
    still = {"optimizer": optax.sgd(0.0), "steps": 1}
    earlier = distill(train, initialization="noise", flip=True, **still)
    for start in (earlier.last, Given(earlier.last)):
        on = distill(train, initialization=start, **still)
        assert same(on.last.images, earlier.last.images)
        assert same(on.last.labels, earlier.last.labels)
        assert on.last.flip
        assert eqx.tree_equal(on.coreset.preprocess, earlier.coreset.preprocess)

    made = distill(train, initialization=Blank(), flip=True, **still)
    assert 0.05 < float(made.last.images.std()) < 0.2
    assert same(made.last.labels, np.eye(3))
    assert made.recipe["initialization"] == "Blank"
    for wrong, says in (
        (Blank(False), "made a .*: it must make a Coreset"),
        (Coreset(jnp.zeros((2, 7, 7, 1)), jnp.eye(3)[:2], jnp.zeros(())), r"images \(2, 7, 7, 1\)"),
        (Coreset(jnp.full((3, 7, 7, 1), jnp.nan), jnp.eye(3), jnp.zeros(())), "NaN"),
        (eqx.tree_at(lambda c: c.preprocess, earlier.last, Identity()), "leave one out"),
    ):
        with pytest.raises(ValueError, match=says):
            distill(train, initialization=wrong, preprocess=standardize(train.images))


class Contrast(AbstractPreprocess):
    """Pixels times a learned number, less a half."""

    scale: jax.Array
    shift: float = eqx.field(static=True, default=0.5)

    def __call__(self, images):
        return (jnp.asarray(images, jnp.float32) / 255 - self.shift) * self.scale

    def inverse(self, x):
        return jnp.asarray(x, jnp.float32) / self.scale + self.shift


class Half(AbstractPreprocess):
    """A wrong one: it changes the size."""

    def __call__(self, images):
        return average_pool(jnp.asarray(images, jnp.float32))

    def inverse(self, x):
        return jnp.asarray(x)


def test_a_preprocessing_of_ones_own_is_stored_and_read_back(train, tmp_path):
    result = distill(train, preprocess=Contrast(jnp.asarray(3.0)))
    pixels = result.coreset.preprocess.inverse(result.baseline.images)  # pyright: ignore[reportOptionalMemberAccess]
    assert np.abs(np.asarray(pixels)[0] - train.images / 255).max((1, 2, 3)).min() < 1e-5
    path = result.save(tmp_path / "set")
    with pytest.raises(DataError, match=r"Contrast, which is no part .*preprocess=\.\.\."):
        load_result(path)
    with pytest.raises(DataError, match="other arrays than the one given"):
        load_result(path, preprocess=Contrast(jnp.ones(2)))
    loaded = load_result(path, preprocess=Contrast(jnp.asarray(0.0)))
    assert float(loaded.coreset.preprocess.scale) == 3  # pyright: ignore
    assert same(loaded.coreset, result.coreset)
    with pytest.raises(ValueError, match="cannot be stored: make its arrays finite float32"):
        distill(train, preprocess=Contrast(jnp.asarray(3)))
    with pytest.raises(ValueError, match=r"preprocess made float32 images \(2, 3, 3, 1\)"):
        distill(train, preprocess=Half())


# Parameterizations


class HalfResolution(AbstractParameterization):
    """ψ is a set of images of half the size (here 7 → 3), repeated and padded back."""

    def encode(self, coreset):
        return eqx.tree_at(lambda c: c.images, coreset, average_pool(coreset.images))

    def decode(self, psi):
        large = jnp.repeat(jnp.repeat(psi.images, 2, 1), 2, 2)
        padded = jnp.pad(large, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
        return eqx.tree_at(lambda c: c.images, psi, padded)


class SharedBasis(AbstractParameterization):
    """Images are mixtures of a few learned ones; two sets of coefficients to each."""

    rank: int = 2

    def encode(self, coreset):
        flat = coreset.images.reshape(len(coreset.images), -1)
        basis = flat[: self.rank]
        weights = jnp.linalg.lstsq(basis.T, flat.T)[0].T
        return {"basis": basis, "weights": weights, "labels": coreset.labels,
                "log_temperature": coreset.log_temperature}  # fmt: skip

    def decode(self, psi):
        images = (psi["weights"] @ psi["basis"]).reshape(-1, 7, 7, 1)
        both = jnp.concatenate([images, -images])
        return Coreset(both, jnp.concatenate([psi["labels"], -psi["labels"]]),
                       psi["log_temperature"])  # fmt: skip


@pytest.mark.parametrize("parameterization", [HalfResolution(), SharedBasis()])
def test_a_parameterization_of_ones_own(train, parameterization, tmp_path):
    """ψ moves along the gradient through decode; what is returned is decoded from its average."""
    seen = []

    def look(report):
        seen.append(jax.tree.map(jnp.copy, (report.state.psi, report.state.average)))

    run = distill(train, parameterization=parameterization, optimizer=optax.sgd(0.1), fold=False,
                  callbacks=[look])  # fmt: skip
    assert np.isfinite(run.history["loss"]).all()
    last, average = seen[-1]
    decode = parameterization.decode
    assert same(jax.tree.leaves(run.psi), jax.tree.leaves(average))
    for got, psi in ((run.coreset, average), (run.last, last)):
        np.testing.assert_allclose(got.images, decode(psi).images, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.labels, decode(psi).labels, rtol=1e-5, atol=1e-6)
    assert run.recipe["bytes"] == sum(4 * x.size for x in jax.tree.leaves(run.psi))
    assert run.recipe["parameterization"]["name"] == type(parameterization).__name__
    assert run.baseline.images.shape == (3, 7, 7, 1)
    loaded = load_result(run.save(tmp_path / "set"))
    assert same(loaded.coreset.images, run.coreset.images)


def test_the_gradient_goes_back_through_decode(train):
    """One step of plain descent, by hand."""
    half, states = HalfResolution(), []
    start = Coreset(jr.normal(jr.key(1), (3, 7, 7, 1)), jnp.eye(3), jnp.asarray(0.5))
    distill(
        train,
        initialization=start,
        parameterization=half,
        optimizer=optax.sgd(0.1),
        steps=1,
        callbacks=[lambda report: states.append(jax.tree.map(jnp.copy, report.state.psi))],
    )
    psi = half.encode(start)
    decoded, transpose = jax.vjp(half.decode, psi)
    (gradient,) = transpose(jax.tree.map(jnp.cos, decoded))
    for got, x, g in zip(*map(jax.tree.leaves, (states[0], psi, gradient)), strict=True):
        np.testing.assert_allclose(got, x - 0.1 * g, rtol=1e-5, atol=1e-6)
    assert psi.images.shape == (3, 3, 3, 1)


class Broken(AbstractParameterization):
    what: str

    def encode(self, coreset):
        return {"set": coreset, "n": jnp.arange(3)} if self.what == "integers" else coreset

    def decode(self, psi):
        if self.what == "nothing":
            return psi.images
        if self.what == "flip":
            return Coreset(psi.images, psi.labels, psi.log_temperature)
        return eqx.tree_at(lambda c: c.images, psi, psi.images[:, ::2])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("integers", "floating-point arrays alone"),
        ("nothing", "decode returned a .*: it must return a Coreset"),
        ("flip", "True.*: change the images of the coreset that encode was given"),
        ("size", r"\(3, 4, 7, 1\).* where these data need .*\(3, 7, 7, 1\)"),
    ],
)
def test_parameterizations_that_are_none_are_refused(train, what, says):
    with pytest.raises(ValueError, match=says):
        distill(train, parameterization=Broken(what), flip=True)
