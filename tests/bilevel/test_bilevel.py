"""Hypergradients of any bilevel problem, against closed forms, unrolling and finite differences."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rcig_eqx import hypergradient, implicitly_differentiable
from rcig_eqx.bilevel import GaussNewton, LeastSquares
from rcig_eqx.bilevel._engine import RESULTS
from rcig_eqx.models._conv import conv2d
from rcig_eqx.operators import hessian_operator
from rcig_eqx.operators._hessian import in_forward
from rcig_eqx.solvers import Adam, ConjugateGradient, Dual, Neumann

CG = ConjugateGradient(1e-13, 500)
compiled = eqx.filter_jit(hypergradient)


@pytest.fixture(scope="module", autouse=True)
def _strict():
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


def relative(a, b) -> float:
    a, b = (np.asarray(ravel_pytree(tree)[0]) for tree in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


class Ridge:
    """½‖A w − y‖² + ½ Σ exp(log_l2) w², its minimum in closed form; ψ is log_l2 and y."""

    def __init__(self, dtype=None):
        rng = np.random.default_rng(0)
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
        self.A, self.B, self.b = draw(9, 4), draw(6, 4), draw(6)
        self.psi = {"log_l2": jnp.asarray([-1.0, 0.5, 0.0, 0.3], dtype), "y": draw(9)}
        self.loss = LeastSquares(
            lambda w, psi: self.A @ w["w"] - psi["y"], lambda psi: {"w": jnp.exp(psi["log_l2"])}
        )

    def inner(self, w, psi):
        penalty = jnp.sum(jnp.exp(psi["log_l2"]) * w["w"] ** 2)
        return 0.5 * jnp.sum((self.A @ w["w"] - psi["y"]) ** 2) + 0.5 * penalty

    def outer(self, w, psi):
        return 0.5 * jnp.sum((self.B @ w["w"] - self.b) ** 2) + 0.1 * jnp.sum(psi["y"] ** 2)

    def hessian(self, psi):
        return self.A.T @ self.A + jnp.diag(jnp.exp(psi["log_l2"]))

    def closed(self, psi):
        return {"w": jnp.linalg.solve(self.hessian(psi), self.A.T @ psi["y"])}

    def reduced(self, psi):
        """The outer loss as a function of ψ alone."""
        return self.outer(self.closed(psi), psi)


@pytest.fixture(scope="module")
def ridge():
    return Ridge()


# name: solver, relative error of the hypergradient, Hessian-vector products or None
SOLVERS = {
    "cg": (CG, 1e-8, 4),
    "neumann": (Neumann(20_000, rtol=1e-12), 1e-8, None),
    "adam": (Adam(3e-2, 2000), 1e-8, 2000),  # leaves the minimum again after some 3,000
    "lineax_cg": (lx.CG(1e-13, 1e-13), 1e-8, None),
    "lineax_gmres": (lx.GMRES(1e-13, 1e-13), 1e-8, None),
    "cholesky": (lx.Cholesky(), 1e-8, 4),
    "lu": (lx.LU(), 1e-8, 4),
    "dual_cholesky": (Dual(lx.Cholesky()), 1e-8, 11),
    "dual_cg": (Dual(ConjugateGradient(1e-13, 100)), 1e-8, None),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_ridge_hyperparameters_with_every_solver(ridge, name, monkeypatch):
    """Against the closed form; products counted as they run; through `jax.grad` as well."""
    solver, tolerance, products = SOLVERS[name]
    counted = []

    def counting(*args, **kwargs):
        operator = hessian_operator(*args, **kwargs)

        def product(v):
            jax.debug.callback(lambda: counted.append(1))
            return operator.mv(v)

        return lx.FunctionLinearOperator(product, operator.in_structure(), operator.tags)

    loss = ridge.loss if name.startswith("dual") else ridge.inner
    outer = ridge.outer
    run = jax.jit(lambda psi: hypergradient(outer, loss, ridge.closed(psi), psi, solver=solver))
    with monkeypatch.context() as patch:
        patch.setattr("rcig_eqx.bilevel._inner.hessian_operator", counting)
        got = run(ridge.psi)
        jax.effects_barrier()
    value, expected = jax.value_and_grad(ridge.reduced)(ridge.psi)
    assert relative(got.gradient, expected) < tolerance
    assert relative(got.gradient, jax.tree.map(jnp.add, got.direct, got.implicit)) < 1e-14
    assert jax.tree.structure(got.gradient) == jax.tree.structure(ridge.psi)
    assert float(got.value) == pytest.approx(float(value), rel=1e-12)
    assert got.result == RESULTS.successful
    assert got.stats["converged"]
    assert not got.stats["diverged"]
    H, g = ridge.hessian(ridge.psi), jax.grad(ridge.outer)(ridge.closed(ridge.psi), ridge.psi)
    assert relative(got.adjoint, {"w": jnp.linalg.solve(H, g["w"])}) < 10 * tolerance
    true = relative(H @ got.adjoint["w"], g["w"])
    assert float(got.stats["residual"]) == pytest.approx(true, rel=0.5, abs=1e-9)
    if name == "dual_cg":
        products = int(got.stats["iterations"]) + 2
    if products is not None:
        assert int(got.stats["products"]) == products
    if name in ("cg", "neumann", "adam"):
        assert int(got.stats["products"]) == len(counted)
    assert {x.dtype.name for x in jax.tree.leaves(got.gradient)} == {"float64"}

    solve = implicitly_differentiable(lambda start, psi: ridge.closed(psi), loss, solver=solver)
    through = jax.jit(jax.grad(lambda psi: ridge.outer(solve(None, psi), psi)))(ridge.psi)
    assert relative(through, expected) < tolerance


@pytest.mark.parametrize("name", SOLVERS)
def test_damping_is_added_to_the_curvature(ridge, name):
    w = ridge.closed(ridge.psi)
    H = ridge.hessian(ridge.psi) + 0.7 * jnp.eye(4)
    g = jax.grad(ridge.outer)(w, ridge.psi)["w"]
    solver, tolerance, _ = SOLVERS[name]
    losses = [ridge.loss] if name.startswith("dual") else [ridge.inner, ridge.loss]
    for loss in losses:
        got = compiled(ridge.outer, loss, w, ridge.psi, solver=solver, damping=0.7)
        assert relative(got.adjoint["w"], jnp.linalg.solve(H, g)) < tolerance


def test_in_single_precision_with_x64_off():
    with jax.enable_x64(False):
        ridge = Ridge(jnp.float32)
        solver = ConjugateGradient(1e-6)
        got = jax.jit(
            lambda psi: hypergradient(
                ridge.outer, ridge.inner, ridge.closed(psi), psi, solver=solver, damping=0.0
            )
        )(ridge.psi)
        solve = implicitly_differentiable(
            lambda start, psi: ridge.closed(psi), ridge.loss, solver=Dual()
        )
        through = jax.grad(lambda psi: ridge.outer(solve(None, psi), psi))(ridge.psi)
        expected = jax.grad(ridge.reduced)(ridge.psi)
        for gradient in (got.gradient, through):
            assert relative(gradient, expected) < 1e-4
            assert {x.dtype.name for x in jax.tree.leaves(gradient)} == {"float32"}
        assert got.stats["converged"]


def test_weighted_least_squares():
    """Example weights, as in data cleaning; the residuals' scale is ψ, so the dual applies too."""
    rng = np.random.default_rng(1)
    A, y, B, b = (jnp.asarray(rng.standard_normal(s)) for s in ((12, 5), (12,), (8, 5), (8,)))
    logits = jnp.asarray(rng.standard_normal(12))

    def closed(logits):
        W = jax.nn.sigmoid(logits)
        return jnp.linalg.solve(A.T @ (W[:, None] * A) + 0.1 * jnp.eye(5), A.T @ (W * y))

    outer = lambda w, logits: 0.5 * jnp.sum((B @ w - b) ** 2)  # noqa: E731
    loss = LeastSquares(
        lambda w, logits: jnp.sqrt(jax.nn.sigmoid(logits)) * (A @ w - y), lambda logits: 0.1
    )
    plain = lambda w, logits: (  # noqa: E731
        0.5 * jnp.sum(jax.nn.sigmoid(logits) * (A @ w - y) ** 2) + 0.05 * jnp.sum(w**2)
    )
    expected = jax.grad(lambda logits: outer(closed(logits), logits))(logits)
    for inner, solver in (
        (plain, CG),
        (loss, CG),
        (loss, Dual()),
        (loss, Dual(ConjugateGradient(1e-13))),
    ):
        got = compiled(outer, inner, closed(logits), logits, solver=solver)
        assert relative(got.gradient, expected) < 1e-8
        assert not got.direct.any()


@pytest.fixture(scope="module")
def logistic():
    """Logistic regression in float64: data, the minimum by Newton, ψ = per-feature log L2."""
    rng = np.random.default_rng(2)
    X, V = rng.standard_normal((20, 3)), rng.standard_normal((10, 3))
    t, s = (rng.random(20) < 0.5).astype(float), (rng.random(10) < 0.5).astype(float)
    psi, w = np.array([-1.0, 0.2, -0.4]), np.zeros(3)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    H = np.eye(3)
    for _ in range(50):
        p = sigmoid(X @ w)
        H = X.T @ (X * (p * (1 - p))[:, None]) + np.diag(np.exp(psi))
        w = w - np.linalg.solve(H, X.T @ (p - t) + np.exp(psi) * w)
    g = V.T @ (sigmoid(V @ w) - s)
    dense = -np.exp(psi) * w * np.linalg.solve(H, g)  # −(∂²L/∂ψ∂θ) H⁻¹ g, written out
    return X, t, V, s, jnp.asarray(psi), jnp.asarray(w), dense


def cross_entropy(X, t, w):
    z = jnp.asarray(X) @ w
    return jnp.sum(jax.nn.softplus(z) - jnp.asarray(t) * z)


def test_logistic_regression_against_a_dense_implicit_derivative(logistic):
    X, t, V, s, psi, w, dense = logistic

    def penalized(f, w, psi):
        loss = jnp.sum(jax.nn.softplus(f) - jnp.asarray(t) * f)
        return loss + 0.5 * jnp.sum(jnp.exp(psi) * w**2)

    inner = lambda w, psi: penalized(jnp.asarray(X) @ w, w, psi)  # noqa: E731
    outer = lambda w, psi: cross_entropy(V, s, w)  # noqa: E731
    outputs = lambda w, psi: (jnp.asarray(X) @ w, w)  # noqa: E731
    composite = GaussNewton(outputs, lambda f, psi: penalized(f[0], f[1], psi))
    for loss in (inner, composite):  # outputs linear in w: Gauss–Newton is the Hessian
        for solver in (CG, lx.Cholesky(), Neumann(5000, rtol=1e-12)):
            got = compiled(outer, loss, w, psi, solver=solver)
            assert relative(got.gradient, dense) < 1e-8


def test_unrolled_differentiation_comes_nearer_as_its_steps_grow(logistic):
    X, t, V, s, psi, w, dense = logistic
    inner = lambda w, psi: cross_entropy(X, t, w) + 0.5 * jnp.sum(jnp.exp(psi) * w**2)  # noqa: E731

    def descend(start, psi, steps):
        def step(w, _):
            return w - 0.1 * jax.grad(inner)(w, psi), None

        return jax.lax.scan(step, start, length=steps)[0]

    errors = []
    for steps in (5, 20, 80, 320):
        unrolled = jax.jit(jax.grad(lambda psi: cross_entropy(V, s, descend(0 * w, psi, steps))))  # noqa: B023
        errors.append(relative(unrolled(psi), dense))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 27 * errors[3]
    assert errors[3] < 1e-8
    # Implicit differentiation of the same descent needs the minimum, and no memory of the way.
    solve = implicitly_differentiable(functools.partial(descend, steps=320), inner, solver=CG)
    through = jax.jit(jax.grad(lambda psi: cross_entropy(V, s, solve(0 * w, psi))))(psi)
    assert relative(through, dense) < 1e-8
    at_start = jax.jit(jax.grad(lambda start: cross_entropy(V, s, solve(start, psi))))(w)
    assert not at_start.any()  # a minimum does not know where the search began


def newton(loss, theta):
    """Gradient descent into a basin, then Newton steps by dense algebra."""
    flat, unravel = ravel_pytree(theta)
    f = lambda x: loss(unravel(x))  # noqa: E731
    x = jax.lax.fori_loop(0, 3000, lambda _, x: x - 0.05 * jax.grad(f)(x), flat)
    step = lambda _, x: x - jnp.linalg.solve(jax.hessian(f)(x), jax.grad(f)(x))  # noqa: E731
    return unravel(jax.lax.fori_loop(0, 6, step, x))


@pytest.fixture(scope="module")
def network():
    """A three-layer network as a whole module, its inner loss, and its minimum."""
    key, x_key, y_key, v_key = jr.split(jr.key(0), 4)
    model = eqx.nn.MLP(2, 1, 3, 2, activation=jnp.tanh, dtype=jnp.float64, key=key)
    X, V = jr.normal(x_key, (8, 2)), jr.normal(v_key, (5, 2))
    y = jnp.sin(2 * X[:, 0]) + jr.normal(y_key, (8,))
    psi = {"log_l2": jnp.asarray([-0.5, -1.0, 0.0]), "y": y}

    def inner(model, psi):
        layers = [eqx.filter(layer, eqx.is_inexact_array) for layer in model.layers]
        squares = jnp.stack([jnp.sum(ravel_pytree(layer)[0] ** 2) for layer in layers])
        errors = jax.vmap(model)(X)[:, 0] - psi["y"]
        return 0.5 * jnp.sum(errors**2) + 0.5 * jnp.exp(psi["log_l2"]) @ squares

    def outer(model, psi):
        return 0.5 * jnp.mean((jax.vmap(model)(V)[:, 0] - jnp.sin(2 * V[:, 0])) ** 2)

    def minimize(model, psi):
        theta, static = eqx.partition(model, eqx.is_inexact_array)
        return eqx.combine(newton(lambda t: inner(eqx.combine(t, static), psi), theta), static)

    return inner, outer, eqx.filter_jit(minimize), eqx.filter_jit(minimize)(model, psi), psi


def test_a_three_layer_network_against_finite_differences(network):
    """The minimum found anew on both sides of ψ, along random directions."""
    inner, outer, minimize, model, psi = network
    slope = eqx.filter_jit(eqx.filter_grad(inner))(model, psi)
    assert float(jnp.linalg.norm(ravel_pytree(slope)[0])) < 1e-12
    got = eqx.filter_jit(hypergradient)(outer, inner, model, psi, solver=CG)
    assert got.stats["converged"]
    assert jax.tree.structure(got.adjoint) == jax.tree.structure(
        eqx.filter(model, eqx.is_inexact_array)
    )
    flat, unravel = ravel_pytree(psi)
    at = eqx.filter_jit(lambda flat: outer(minimize(model, unravel(flat)), None))
    for key in jr.split(jr.key(5), 3):
        d, h = jr.normal(key, flat.shape), 1e-4
        ends = [at(flat + s * h * d) for s in (1, -1, 2, -2)]
        numeric = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * h)
        assert float(ravel_pytree(got.gradient)[0] @ d) == pytest.approx(float(numeric), rel=1e-6)


def test_frozen_leaves_and_filter_specs(network):
    """Only the last layer was minimized over, only its penalty and the labels are learned."""
    inner, outer, _, model, psi = network
    last = jax.tree.map(lambda _: False, model)
    last = eqx.tree_at(lambda m: m.layers[-1], last, True)
    theta, rest = eqx.partition(model, last)
    got = compiled(
        outer, inner, model, psi, solver=CG,
        inner_filter_spec=last, filter_spec={"log_l2": True, "y": False},
    )  # fmt: skip
    by_hand = compiled(
        lambda theta, log_l2: outer(eqx.combine(theta, rest), psi),
        lambda theta, log_l2: inner(eqx.combine(theta, rest), psi | {"log_l2": log_l2}),
        theta,
        psi["log_l2"],
        solver=CG,
    )
    assert got.gradient["y"] is None
    assert relative(got.gradient["log_l2"], by_hand.gradient) < 1e-12
    assert jax.tree.structure(got.adjoint) == jax.tree.structure(theta)
    solve = implicitly_differentiable(
        lambda start, psi: start, inner, solver=CG, inner_filter_spec=last
    )
    through = jax.jit(jax.grad(lambda psi: outer(solve(model, psi), psi)))(psi)
    assert relative(through["log_l2"], by_hand.gradient) < 1e-12


def test_under_vmap(ridge):
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, 2 * x]), ridge.psi)
    solve = implicitly_differentiable(lambda start, psi: ridge.closed(psi), ridge.inner, solver=CG)

    def both(psi):
        got = compiled(ridge.outer, ridge.inner, ridge.closed(psi), psi, solver=CG)
        return got, jax.grad(lambda psi: ridge.outer(solve(None, psi), psi))(psi)

    got, through = jax.jit(jax.vmap(both))(many)
    expected = jax.vmap(jax.grad(ridge.reduced))(many)
    assert relative(got.gradient, expected) < 1e-8
    assert relative(through, expected) < 1e-8
    assert (got.result == RESULTS.successful).all()
    assert got.stats["products"].shape == (3,)


@pytest.mark.parametrize("name", ["cg", "cholesky", "dual_cholesky"])
def test_gradients_of_gradients(ridge, name):
    """The Hessian in ψ of the outer loss, reverse over reverse and forward over reverse."""
    solver = SOLVERS[name][0]
    loss = ridge.loss if name.startswith("dual") else ridge.inner
    solve = implicitly_differentiable(lambda start, psi: ridge.closed(psi), loss, solver=solver)
    reduced = lambda log_l2: ridge.reduced(ridge.psi | {"log_l2": log_l2})  # noqa: E731

    def implicit(log_l2):
        psi = ridge.psi | {"log_l2": log_l2}
        return ridge.outer(solve(None, psi), psi)

    log_l2 = ridge.psi["log_l2"]
    expected = jax.hessian(reduced)(log_l2)
    for second in (jax.jacrev(jax.grad(implicit)), jax.jacfwd(jax.grad(implicit))):
        assert relative(jax.jit(second)(log_l2), expected) < 1e-8
    tangent = jnp.arange(4.0)
    forward = jax.jvp(implicit, (log_l2,), (tangent,))[1]
    assert float(forward) == pytest.approx(float(jax.grad(reduced)(log_l2) @ tangent), rel=1e-8)


def test_hypergradients_are_differentiable_at_a_fixed_solution(ridge):
    """The adjoint solve differentiates as a solve; θ held fixed, by finite differences."""
    w = ridge.closed(ridge.psi)

    def norm(log_l2):
        psi = ridge.psi | {"log_l2": log_l2}
        got = compiled(ridge.outer, ridge.inner, w, psi, solver=CG)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(got.gradient))

    log_l2, d, h = ridge.psi["log_l2"], jnp.asarray([1.0, -2.0, 0.5, 1.0]), 1e-5
    numeric = (norm(log_l2 + h * d) - norm(log_l2 - h * d)) / (2 * h)
    assert float(jax.grad(norm)(log_l2) @ d) == pytest.approx(float(numeric), rel=1e-6)


def test_warm_start_and_preconditioner(ridge):
    w, psi = ridge.closed(ridge.psi), ridge.psi
    run = functools.partial(compiled, ridge.outer, ridge.inner, w, psi)
    cold = run(solver=CG)
    warm = run(solver=ConjugateGradient(1e-6), warm_start=cold.adjoint)
    assert (int(cold.stats["iterations"]), int(warm.stats["iterations"])) == (4, 0)
    assert int(warm.stats["products"]) == 1
    assert relative(warm.gradient, cold.gradient) < 1e-10
    inverse = jnp.linalg.inv(ridge.hessian(psi))
    for solver in (CG, lx.CG(1e-13, 1e-13)):
        exact = run(solver=solver, preconditioner=lambda v: {"w": inverse @ v["w"]})
        assert int(exact.stats["iterations"]) <= 3
        assert relative(exact.gradient, cold.gradient) < 1e-10
    leak = jax.grad(
        lambda v: run(solver=ConjugateGradient(0.5, 1), warm_start=v).gradient["y"].sum()
    )
    assert not leak({"w": 0.1 * w["w"]})["w"].any()


def test_a_key_and_a_batch_are_the_same_in_gradient_and_hessian():
    """A loss with dropout: the hypergradient is that of the one mask the key draws."""
    X, y = jr.normal(jr.key(1), (10, 4)), jr.normal(jr.key(2), (10,))

    def inner(w, psi, key, batch):
        X, y = batch
        mask = jr.bernoulli(key, 0.5, X.shape)
        errors = jnp.where(mask, X, 0) @ w - y
        return 0.5 * jnp.sum(errors**2) + 0.5 * jnp.sum(jnp.exp(psi) * w**2)

    def outer(w, psi, key, batch):
        return 0.5 * jnp.sum((batch[0] @ w - 1) ** 2)

    psi, key = jnp.asarray([0.1, -0.3, 0.2, 0.0]), jr.key(3)

    def closed(psi, key):
        M = jnp.where(jr.bernoulli(key, 0.5, X.shape), X, 0)
        return jnp.linalg.solve(M.T @ M + jnp.diag(jnp.exp(psi)), M.T @ y)

    run = jax.jit(functools.partial(hypergradient, outer, inner, solver=CG))
    solve = implicitly_differentiable(
        lambda start, psi, key, batch: closed(psi, key), inner, solver=CG
    )
    gradients = []
    for key in jr.split(jr.key(3)):
        expected = jax.grad(lambda psi: outer(closed(psi, key), psi, key, (X, y)))(psi)  # noqa: B023
        got = run(closed(psi, key), psi, key, (X, y))
        assert relative(got.gradient, expected) < 1e-8
        through = jax.grad(lambda psi: outer(solve(None, psi, key, (X, y)), psi, key, (X, y)))(psi)  # noqa: B023
        assert relative(through, expected) < 1e-8
        gradients.append(got.gradient)
    assert relative(*gradients) > 1e-2


class Normalized(eqx.Module):
    """One layer, batch normalization, one layer."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, *, key):
        keys = jr.split(key)
        self.first = eqx.nn.Linear(3, 4, dtype=jnp.float64, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch", dtype=jnp.float64)
        self.last = eqx.nn.Linear(4, 1, dtype=jnp.float64, key=keys[1])

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jnp.tanh(x)), state


def test_stateful_layers_have_their_state_in_args():
    """Held fixed in every evaluation, the new one in aux."""
    X, y, V = (jr.normal(jr.key(i), s) for i, s in ((1, (6, 3)), (2, (6,)), (3, (5, 3))))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Equinox's own
        model, state = eqx.nn.make_with_state(Normalized)(key=jr.key(0))

        def apply(model, X, state):
            axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
            out, state = jax.vmap(model, **axes)(X, state)
            return out[:, 0], state

        def inner(model, log_l2, state):
            theta = ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[0]
            errors = apply(model, X, state)[0] - y
            return 0.5 * jnp.sum(errors**2) + 0.5 * jnp.exp(log_l2) * theta @ theta

        def outer(model, log_l2, state):
            out, state = apply(model, V, state)
            return jnp.mean(out**2), state

        run = functools.partial(hypergradient, outer, inner, solver=lx.LU(), has_aux=True)
        got, after = eqx.filter_jit(run)(model, jnp.asarray(0.3), state)
        theta, unravel = ravel_pytree(eqx.filter(model, eqx.is_inexact_array))
        static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
        fresh = lambda: jax.tree.map(lambda x: x, state)  # noqa: E731
        at = lambda t: eqx.combine(unravel(t), static)  # noqa: E731
        H = jax.jit(jax.hessian(lambda t: inner(at(t), jnp.asarray(0.3), fresh())))(theta)
        g = jax.jit(jax.grad(lambda t: outer(at(t), None, fresh())[0]))(theta)
        expected = -jnp.exp(0.3) * theta @ jnp.linalg.solve(H, g)
        assert float(got.gradient) == pytest.approx(float(expected), rel=1e-8)
        expected = jax.tree.leaves(eqx.filter_jit(outer)(model, None, fresh())[1])
        for a, b in zip(jax.tree.leaves(after), expected, strict=True):
            np.testing.assert_allclose(a, b)
        assert not eqx.tree_equal(after, state)
        assert isinstance(after, eqx.nn.State)
        with pytest.raises(ValueError, match=r"inner_params\[1\] is an equinox.nn.State.*in args"):
            hypergradient(outer, inner, (model, state), jnp.asarray(0.3), solver=CG)


def saddle(w, psi):
    return 0.5 * (w[0] ** 2 - w[1] ** 2) + psi * w.sum()


def bowl(w, psi):
    return 0.5 * (w[0] ** 2 + 50 * w[1] ** 2) + psi * w.sum()


# name: inner loss, solver, damping, whether it diverges
OUTCOMES = {
    "indefinite_cg": (saddle, CG, 0.0, True),
    "damped_cg": (saddle, CG, 3.0, False),
    "indefinite_neumann": (saddle, Neumann(2000), 0.0, True),
    "long_steps_neumann": (bowl, Neumann(30, step_size=0.1), 0.0, True),
    "fast_adam": (bowl, Adam(50.0, 5), 0.0, True),
    "truncated_adam": (bowl, Adam(1e-3, 5), 0.0, False),
    "truncated_cg": (bowl, ConjugateGradient(1e-8, 1), 0.0, False),
    "truncated_neumann": (bowl, Neumann(3), 0.0, False),
    "singular_cholesky": (saddle, lx.Cholesky(), 0.0, True),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_truncated_solve_is_a_success_and_a_diverged_one_says_so(name):
    inner, solver, damping, diverged = OUTCOMES[name]
    outer = lambda w, psi: w[0] + 2 * w[1]  # noqa: E731
    w, psi = jnp.asarray([0.2, 0.1]), jnp.asarray(0.4)
    run = functools.partial(compiled, outer, inner, w, psi, solver=solver, damping=damping)
    got = run()
    assert (got.result == RESULTS.diverged) == diverged
    assert bool(got.stats["diverged"]) == diverged
    assert ("add damping" in RESULTS[got.result]) == diverged
    if name == "truncated_cg":
        assert not got.stats["converged"]
    solve = implicitly_differentiable(
        lambda start, psi: start, inner, solver=solver, damping=damping
    )
    through = jax.grad(lambda psi: outer(solve(w, psi), psi))(psi)
    assert bool(jnp.isnan(through)) == diverged
    if diverged:
        with pytest.raises(RuntimeError, match="add damping"):
            jax.block_until_ready(run(throw=True).gradient)
    else:
        assert relative(through, got.gradient) < 1e-10
        run(throw=True)


def test_leaves_of_different_precision():
    w = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones(2)}
    inner = lambda w, psi: jnp.sum((w["a"] - psi) ** 2) + jnp.sum((w["b"] + 2 * psi) ** 2)  # noqa: E731
    outer = lambda w, psi: jnp.sum(w["a"]) + jnp.sum(w["b"])  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):  # lineax needs it for such operators
        got = compiled(outer, inner, w, jnp.asarray(0.5), solver=ConjugateGradient(1e-6))
    assert float(got.gradient) == pytest.approx(3 - 4, rel=1e-6)
    assert got.adjoint["a"].dtype == jnp.float32


def given(**changed):
    """A call of `hypergradient` with one thing changed."""
    quadratic = lambda w, psi: jnp.sum((w - psi) ** 2)  # noqa: E731
    arguments = {
        "outer_loss": quadratic,
        "inner_loss": quadratic,
        "inner_params": jnp.ones(3),
        "outer_params": jnp.ones(3),
        "solver": CG,
    }
    return hypergradient(**(arguments | changed))


def penalized(l2):
    """Least squares with such a λ."""
    return LeastSquares(lambda w, psi: w - psi, lambda psi: l2)


# name: what is changed, what the message says
MISTAKES = {
    "inner_loss_rows": (
        {"inner_loss": lambda w, p: (w - p) ** 2},
        r"inner_loss returns float64\[3\].*mean",
    ),
    "outer_loss_rows": (
        {"outer_loss": lambda w, p: w},
        r"outer_loss returns float64\[3\], not one",
    ),
    "outer_loss_complex": (
        {"outer_loss": lambda w, p: w.sum().astype(complex)},
        "outer_loss returns complex",
    ),
    "outer_loss_python": ({"outer_loss": lambda w, p: None}, "outer_loss returns NoneType"),
    "aux_unasked": ({"outer_loss": lambda w, p: (w.sum(), w)}, "pass has_aux=True"),
    "aux_missing": ({"has_aux": True}, r"must return \(loss, aux\)"),
    "inner_empty": ({"inner_params": ()}, "inner_params has no floating-point array"),
    "outer_empty": ({"outer_params": {"a": "1"}}, "outer_params has no floating-point array"),
    "inner_python_integer": ({"inner_params": {"a": jnp.ones(3), "b": 1}}, r"inner_params\['b'\]"),
    "outer_python_integer": ({"outer_params": 3}, "outer_params is the Python integer"),
    "outer_python_complex": ({"outer_params": [1j]}, r"outer_params\[0\] is complex"),
    "l2_negative": ({"inner_loss": penalized(-1.0)}, "l2 returns -1.0"),
    "l2_zero": ({"inner_loss": penalized(0)}, "l2 returns 0"),
    "l2_nan": ({"inner_loss": penalized(np.nan)}, "l2 returns nan"),
    "l2_text": ({"inner_loss": penalized("0.1")}, "l2 returns '0.1'"),
    "l2_complex": ({"inner_loss": penalized(1j)}, "l2 returns 1j"),
    "l2_of_other_shape": ({"inner_loss": penalized(np.ones(2))}, r"l2 returns \[2\] for .*\[3\]"),
    "l2_of_other_structure": ({"inner_loss": penalized({"a": 1.0})}, "l2 returns PyTreeDef"),
    "inner_integers": (
        {"inner_params": {"a": jnp.arange(3)}, "inner_filter_spec": True},
        r"inner_params\['a'\] is int",
    ),
    "outer_complex": ({"outer_params": jnp.ones(3) * 1j}, "outer_params is complex.*split"),
    "spec_of_other_structure": (
        {"filter_spec": {"a": True}},
        "filter_spec of outer_params does not fit",
    ),
    "warm_start_of_other_shape": ({"warm_start": jnp.ones(2)}, "warm_start is not shaped like"),
    "warm_start_of_other_structure": (
        {"warm_start": (jnp.ones(3),)},
        "warm_start is not shaped like",
    ),
    "solver_a_string": ({"solver": "cg"}, r"solver is 'cg': pass a value of rcig_eqx\.solvers"),
    "solver_a_class": ({"solver": ConjugateGradient}, "pass a value of"),
    "solver_untuned": ({"solver": Adam()}, r"give it one, as in Adam\(1e-3\)"),
    "solver_dual": ({"solver": Dual()}, r"pass LeastSquares\(residuals, l2\)"),
    "warm_start_of_a_dual_solver": (
        {
            "inner_loss": LeastSquares(lambda w, psi: w - psi, lambda psi: 0.1),
            "solver": Dual(ConjugateGradient()),
            "warm_start": jnp.ones(3),
        },
        "no use for a warm_start",
    ),
    "damping_negative": ({"damping": -1.0}, "damping is -1.0"),
    "preconditioned_neumann": (
        {"solver": Neumann(), "preconditioner": lambda v: v},
        "takes no preconditioner",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_any_work(name):
    changed, says = MISTAKES[name]
    kind = ValueError if not name.startswith("solver_a") else Exception  # types: the hook's
    with pytest.raises(kind, match=says if kind is ValueError else "solver"):
        given(**changed)


def test_mistakes_of_the_differentiable_minimizer():
    with pytest.raises(ValueError, match="takes no preconditioner"):
        implicitly_differentiable(saddle, saddle, solver=lx.LU(), preconditioner=lambda v: v)
    solve = implicitly_differentiable(lambda start, psi: 3, bowl, solver=CG)
    with pytest.raises(ValueError, match="result of minimize is the Python integer 3"):
        solve(jnp.ones(2), jnp.asarray(0.1))
    rows = implicitly_differentiable(lambda start, psi: start, lambda w, psi: w, solver=CG)
    with pytest.raises(ValueError, match="inner_loss returns"):
        rows(jnp.ones(2), jnp.asarray(0.1))


def test_a_warm_start_has_no_derivatives():
    """A truncated solve from a start is not linear: it refuses, where it would be wrong."""
    A = jnp.diag(jnp.asarray([1.0, 2.0, 5.0]))
    inner = lambda w, psi: 0.5 * w @ A @ w - psi @ w  # noqa: E731
    outer = lambda w, psi: 0.5 * jnp.sum((w - 1) ** 2)  # noqa: E731

    def total(psi, solver=Neumann(max_steps=3, step_size=0.1), **given):  # noqa: B008
        theta = jnp.linalg.solve(A, psi)
        return jnp.sum(hypergradient(outer, inner, theta, psi, solver=solver, **given).gradient)

    psi, start = jnp.asarray([0.3, -1.0, 2.0]), jnp.full(3, 100.0)
    assert np.isfinite(total(psi, warm_start=start))
    assert jax.grad(total)(psi).shape == (3,)
    with pytest.raises(Exception, match="leave warm_start out"):
        jax.grad(total)(psi, warm_start=start)
    ignored = {"solver": lx.Cholesky(), "warm_start": start}  # a direct solver has no start
    np.testing.assert_allclose(
        jax.grad(total)(psi, **ignored), jax.grad(total)(psi, solver=lx.Cholesky()), rtol=1e-12
    )


def test_adam_from_a_start_is_measured_against_nothing(ridge):
    """Its residual is of g, and it has not diverged where v = 0 would be worse."""
    w, psi = ridge.closed(ridge.psi), ridge.psi
    run = functools.partial(compiled, ridge.outer, ridge.inner, w, psi)
    start = jax.tree.map(lambda v: 1.001 * v, run(solver=CG).adjoint)
    H, g = ridge.hessian(psi), jax.grad(ridge.outer)(w, psi)["w"]
    for steps in (0, 3):
        got = run(solver=Adam(1e-5, steps), warm_start=start)
        true = relative(H @ got.adjoint["w"], g)
        assert true < 2e-3
        assert float(got.stats["residual"]) == pytest.approx(true, rel=0.1)
        assert not got.stats["diverged"]


H = jnp.asarray([[2.0, 0.5, 1.0], [0.5, 1.0, 0.0], [1.0, 0.0, 1.0]], jnp.float32)


def coupled(t, p):
    """Half tᵀHt − pᵀt over the leaves `w` of two numbers and `b` of one."""
    x = jnp.append(t["w"], t["b"])
    return 0.5 * x @ H.astype(x.dtype) @ x - x @ jnp.append(p["p"], p["c"])


class Pair(eqx.Module):
    """The same leaves in a module."""

    w: jax.Array
    b: float | jax.Array

    def __getitem__(self, name):
        return getattr(self, name)


# name: the number's place is θ or ψ, and what is made of it
NUMBERS = {
    "float": float,
    "numpy_float64": np.float64,
    "numpy_array": np.asarray,
    "array": jnp.asarray,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_among_the_leaves_is_a_parameter(name):
    """A Python float too, as to `jax.grad`: held fixed it would give another gradient."""
    make = NUMBERS[name]
    outer = lambda t, p: jnp.sum(t["w"] ** 2) + t["b"] ** 2  # noqa: E731
    solve = lambda p: jnp.linalg.solve(H.astype(float), jnp.append(p["p"], p["c"]))  # noqa: E731
    p = {"p": jnp.asarray([1.0, -1.0]), "c": make(0.3)}
    expected = jax.grad(lambda p: jnp.sum(solve(p) ** 2))(p | {"c": jnp.asarray(0.3)})
    s = solve(p)
    got = hypergradient(outer, coupled, {"w": s[:2], "b": make(float(s[2]))}, p, solver=CG)
    assert relative(got.gradient, expected) < 1e-8
    found = lambda start, p: {"w": s[:2], "b": make(float(s[2]))}  # noqa: E731
    minimum = implicitly_differentiable(found, coupled, solver=CG)
    through = jax.grad(lambda p: outer(minimum(None, p), p))(p | {"c": jnp.asarray(0.3)})
    assert relative(through, expected) < 1e-8


def test_a_float_in_a_module_is_held_fixed_and_said_so():
    outer = lambda t, p: jnp.sum(t["w"] ** 2)  # noqa: E731
    p, w = {"p": jnp.asarray([1.0, -1.0]), "c": jnp.asarray(0.3)}, jnp.asarray([0.1, 0.2])
    with pytest.warns(UserWarning, match=r"inner_params\.b is the Python float 0\.5"):
        got = hypergradient(outer, coupled, Pair(w, 0.5), p, solver=CG)
    assert got.adjoint.b is None
    own = (eqx.nn.Dropout(0.5), w)  # one of Equinox's settings
    loss = lambda t, p: coupled({"w": t[1], "b": 0.5}, p)  # noqa: E731
    assert hypergradient(lambda t, p: jnp.sum(t[1] ** 2), loss, own, p, solver=CG).stats


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (cube(x), x), lambda x, g: (3 * x**2 * g,))


@jax.custom_vjp
def softened(x):
    """√(1 + x²) by a loop, as what comes with a derivative of its own is often made."""
    start = (jnp.ones_like(x), jnp.zeros((), jnp.int32))
    step = lambda c: (0.5 * (c[0] + (1 + x**2) / c[0]), c[1] + 1)  # noqa: E731
    return jax.lax.while_loop(lambda c: c[1] < 40, step, start)[0]


softened.defvjp(lambda x: (softened(x), (x, softened(x))), lambda kept, g: (kept[0] / kept[1] * g,))


@jax.custom_jvp
def rooted(x):
    """The same with a tangent rule: its loop is in the backward pass, too."""
    return softened(x)


def _rooted_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    start = (jnp.ones_like(x), jnp.zeros((), jnp.int32))
    step = lambda c: (0.5 * (c[0] + (1 + x**2) / c[0]), c[1] + 1)  # noqa: E731
    y = jax.lax.while_loop(lambda c: c[1] < 40, step, start)[0]
    return y, x / y * dx


rooted.defjvp(_rooted_jvp)

# name: a function, the same without a rule of its own
RULES = {
    "custom_vjp": (cube, lambda x: x**3),
    "custom_vjp_of_a_loop": (softened, lambda x: jnp.sqrt(1 + x**2)),
}


@pytest.mark.parametrize("name", RULES)
def test_an_inner_loss_may_have_a_custom_vjp(name):
    """In the loss, in a Gauss–Newton's outputs and in least squares' residuals, at any point."""
    ruled, plain = RULES[name]
    w, psi = jnp.asarray([0.7, 1.2, 0.9]), jnp.asarray([0.3, 0.5, 0.2])
    mix = jnp.asarray([[1.0, 0.4, 0.0], [0.2, 1.0, 0.3], [0.0, 0.1, 1.0]])
    outer = lambda w, psi: jnp.sum(jnp.sin(w)) + jnp.sum(psi**2)  # noqa: E731

    def losses(f):
        residuals = lambda w, psi: f(mix @ w) - f(psi)  # noqa: E731
        square = lambda r, psi: 0.5 * jnp.sum(r**2)  # noqa: E731
        yield lambda w, psi: square(residuals(w, psi), psi), CG
        yield GaussNewton(residuals, square), CG
        for solver in (CG, Dual()):
            yield LeastSquares(residuals, lambda psi: jnp.exp(psi)), solver

    for (ours, solver), (theirs, _) in zip(losses(ruled), losses(plain), strict=True):
        got = compiled(outer, ours, w, psi, solver=solver)
        assert (
            relative(got.gradient, compiled(outer, theirs, w, psi, solver=solver).gradient) < 1e-9
        )
        through = [
            jax.grad(
                lambda psi: outer(
                    implicitly_differentiable(lambda s, psi: w, loss, solver=solver)(None, psi),  # noqa: B023
                    psi,
                )
            )(psi)
            for loss in (ours, theirs)
        ]
        assert relative(*through) < 1e-9


def test_a_loop_in_the_backward_pass_has_its_hessian_in_forward_mode():
    w, v = jnp.asarray([0.7, 1.2]), jnp.asarray([1.0, -2.0])
    got = hessian_operator(lambda w: jnp.sum(rooted(w)), w).mv(v)
    assert relative(got, v * (1 + w**2) ** -1.5) < 1e-12


# name: an inner loss of a kernel and images, whether its Hessian is by forward over reverse
MODES = {
    "dense": (lambda w, x: jnp.sum(jnp.tanh(x[0, :, :, 0] @ w[:, :, 0, 0])), False),
    "lax_convolution": (
        lambda w, x: jnp.sum(
            jnp.tanh(
                jax.lax.conv_general_dilated(
                    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        ),
        True,
    ),
    "own_convolution": (lambda w, x: jnp.sum(jnp.tanh(conv2d(x, w, padding=1))), True),
    "loop": (lambda w, x: jnp.sum(rooted(w)), True),
    "custom_vjp": (lambda w, x: jnp.sum(cube(w)), False),
}


@pytest.mark.parametrize("name", MODES)
def test_which_way_a_hessian_is_taken(name):
    """And that it is the dense one's product either way."""
    loss, forward = MODES[name]
    w, x = jr.normal(jr.key(0), (3, 3, 1, 1)), jr.normal(jr.key(1), (1, 3, 3, 1))
    f = lambda w: loss(w, x) + jnp.sum(w**2)  # noqa: E731
    assert in_forward(jax.grad(f), w) == forward
    v = jr.normal(jr.key(2), w.shape)
    h = 1e-4
    slope = jax.grad(f)
    numeric = (slope(w + h * v) - slope(w - h * v)) / (2 * h)
    assert relative(hessian_operator(f, w).mv(v), numeric) < 1e-6


def test_a_minimizer_with_aux_and_keywords(ridge):
    def minimize(start, psi, *, steps):
        return ridge.closed(psi), {"steps": steps, "psi": psi["y"]}

    solve = implicitly_differentiable(minimize, ridge.inner, solver=CG, has_aux=True)
    assert solve(None, ridge.psi, steps=7)[1]["steps"] == 7
    outer = lambda psi: ridge.outer(solve(None, psi, steps=7)[0], psi)  # noqa: E731
    assert relative(jax.grad(outer)(ridge.psi), jax.grad(ridge.reduced)(ridge.psi)) < 1e-8
    aux = jax.grad(lambda psi: jnp.sum(solve(None, psi, steps=7)[1]["psi"]))(ridge.psi)
    assert not ravel_pytree(aux)[0].any()
    with pytest.raises(Exception, match="A keyword of minimize has no derivatives"):
        jax.grad(lambda s: ridge.outer(solve(None, ridge.psi, steps=s)[0], ridge.psi))(7.0)
    with pytest.raises(ValueError, match=r"minimize must return \(inner_params, aux\)"):
        implicitly_differentiable(
            lambda start, psi: ridge.closed(psi), ridge.inner, solver=CG, has_aux=True
        )(None, ridge.psi)
    with pytest.raises(ValueError, match=r"minimize\[1\]\['steps'\]") as told:
        implicitly_differentiable(minimize, ridge.inner, solver=CG)(None, ridge.psi, steps=7)
    assert "has_aux=True" in "".join(told.value.__notes__)


def test_a_traced_penalty_that_is_not_positive_diverges():
    loss = LeastSquares(lambda w, psi: w - psi, lambda psi: psi[0])
    outer = lambda w, psi: jnp.sum(w)  # noqa: E731
    w = jnp.ones(2)
    for first, diverged in ((1.0, False), (0.0, True), (-0.5, True)):
        psi = jnp.asarray([first, 1.0])
        got = jax.jit(lambda psi: hypergradient(outer, loss, w, psi, solver=Dual()))(psi)
        assert bool(got.stats["diverged"]) == diverged


@pytest.mark.parametrize("l2", [1e-8, 1e-6, 1e-2])
def test_in_single_precision_a_residual_is_the_true_one(l2):
    """The recurrence of conjugate gradients falls on where b − A x does not."""
    with jax.enable_x64(False):
        rng = np.random.default_rng(0)
        A, y, b = (rng.standard_normal(s).astype(np.float32) for s in ((12, 20), 12, 20))
        psi, rtol = jnp.asarray(y), 1e-4
        inner = lambda w, psi: 0.5 * jnp.sum((A @ w - psi) ** 2) + 0.5 * l2 * jnp.sum(w**2)  # noqa: E731
        got = compiled(
            lambda w, psi: jnp.sum(b * w), inner, jnp.zeros(20), psi, solver=ConjugateGradient(rtol)
        )
        v = np.asarray(got.adjoint, np.float64)
        wide = A.astype(np.float64)
        true = np.linalg.norm(b - wide.T @ (wide @ v) - l2 * v) / np.linalg.norm(b)
        residual = float(got.stats["residual"])
        assert residual == pytest.approx(true, rel=0.5)
        assert bool(got.stats["converged"]) == (residual <= rtol) == (l2 == 1e-2)
        assert bool(got.stats["diverged"]) == (residual > 1) == (l2 == 1e-8)


# name: a solver, the relative error it reaches
SCALED = {
    "cg": (ConjugateGradient(1e-5), 1e-4),
    "neumann": (Neumann(2000, rtol=1e-4), 1e-3),
    "dual_cg": (Dual(ConjugateGradient(1e-5)), 1e-4),
    "dual_cholesky": (Dual(), 1e-4),
}


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e30, 0.0, np.nan])
@pytest.mark.parametrize("name", SCALED)
def test_a_right_hand_side_of_any_scale(name, scale):
    """Squares of small numbers underflow; of nothing v is nothing, of NaN it is NaN."""
    with jax.enable_x64(False):
        solver, tolerance = SCALED[name]
        rng = np.random.default_rng(0)
        A, b = (rng.standard_normal(s).astype(np.float32) for s in ((12, 20), 20))
        loss = LeastSquares(lambda w, psi: A @ w - psi, lambda psi: 1.0)
        got = compiled(
            lambda w, psi: jnp.sum(b * np.float32(scale) * w),
            loss,
            jnp.zeros(20),
            jnp.zeros(12),
            solver=solver,
        )
        right = np.linalg.solve(A.T.astype(float) @ A + np.eye(20), b)
        if np.isnan(scale):
            assert got.stats["diverged"]
            assert not got.stats["converged"]
            assert np.isnan(got.gradient).any()
        else:
            assert got.stats["converged"]
            assert (
                np.linalg.norm(np.asarray(got.adjoint, float) - scale * right) <= scale * tolerance
            )


# name: Adam, the scale of its right-hand side; none of them gets anywhere
STUCK = {
    "no_steps": (Adam(1e-3, 0), 1.0),
    "tiny_rate": (Adam(1e-12, 20), 1.0),
    "right_hand_side_below_epsilon": (Adam(1e-3, 20), 1e-15),
    "rate_above_the_solution": (Adam(1e-2, 20), 1e-25),
}


@pytest.mark.parametrize("name", STUCK)
def test_adam_that_got_nowhere_has_not_converged(name):
    solver, scale = STUCK[name]
    inner = lambda w, psi: 0.5 * jnp.sum((w - psi) ** 2)  # noqa: E731
    outer = lambda w, psi: scale * jnp.sum(w)  # noqa: E731
    with jax.enable_x64(False):
        got = compiled(outer, inner, jnp.ones(3), jnp.ones(3), solver=solver)
        assert float(got.stats["residual"]) >= 0.999
        assert not got.stats["converged"]
