"""The exact hypergradient against three independent ways to the same numbers, in float64."""

import functools

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from _problem import exact_hypergradient, head_hypergradient, random_problem
from rcig_eqx import Coreset, mse_loss, platt_loss
from rcig_eqx._losses import label_margin
from rcig_eqx.methods import (
    choose_dual_solver,
    frepo,
    rcig,
    rcig_paper,
    ridge_head,
)
from rcig_eqx.models import partition
from rcig_eqx.solvers import ConjugateGradient

N, BATCH, SIZE = 4, 5, 8
L2_RATE = 5e-3
PAPER = functools.partial(rcig_paper, inner=ConjugateGradient(), solver=ConjugateGradient())


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def problem():
    """A two-block network, a distilled set and an outer batch, all float64 and random."""
    model, *rest = random_problem(N, BATCH, SIZE, channels=2, width=3, depth=2)
    key = jr.split(jr.key(0), 6)[5]
    return jax.tree.map(lambda x: x + 0.1 * jr.normal(key, x.shape, x.dtype), model), *rest


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def relative_error(a, b):
    return float(jnp.linalg.norm(flat(a) - flat(b)) / jnp.linalg.norm(flat(b)))


def closed_form(model, images, targets, outer_loss):
    """The outer loss as a function of ψ, through kernel ridge with an explicit Jacobian."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    theta, unravel = jax.flatten_util.ravel_pytree(parameters)

    def jacobian(X):
        network = lambda t: eqx.combine(unravel(t), static)(X).ravel()  # noqa: E731
        return jax.jacrev(network)(theta)

    def loss(coreset):
        X, y = coreset.support()
        J_S, J_T = jacobian(X), jacobian(images)
        K = J_S @ J_S.T + L2_RATE * len(y) * jnp.eye(y.size)
        f_T = (J_T @ J_S.T @ jnp.linalg.solve(K, y.ravel())).reshape(targets.shape)
        return outer_loss(f_T, targets, coreset.log_temperature)

    return loss


@pytest.mark.parametrize(
    ("solver", "outer_loss", "flip"),
    [
        (lx.Cholesky(), platt_loss, False),
        (lx.Cholesky(), mse_loss, True),
        (ConjugateGradient(rtol=1e-12, max_steps=500), platt_loss, True),
    ],
)
def test_equals_autodiff_through_closed_form(problem, solver, outer_loss, flip):
    model, coreset, images, targets = problem
    coreset = Coreset(coreset.images, coreset.labels, coreset.log_temperature, flip=flip)
    loss = closed_form(model, images, targets, outer_loss)
    value, gradient = jax.jit(jax.value_and_grad(loss))(coreset)
    result = eqx.filter_jit(exact_hypergradient)(
        model, coreset, images, targets, l2_rate=L2_RATE, outer_loss=outer_loss, solver=solver
    )
    assert result.value.dtype == jnp.float64
    assert jax.tree.structure(result.gradient) == jax.tree.structure(gradient)
    np.testing.assert_allclose(result.value, value, rtol=1e-10)
    assert relative_error(result.gradient.images, gradient.images) < 1e-8
    assert relative_error(result.gradient.labels, gradient.labels) < 1e-8
    if outer_loss is platt_loss:
        assert relative_error(result.gradient.log_temperature, gradient.log_temperature) < 1e-8
    else:
        assert result.gradient.log_temperature == 0
    assert result.stats["residual"] < 1e-10


def test_equals_finite_differences(problem):
    model, coreset, images, targets = problem
    loss = jax.jit(closed_form(model, images, targets, platt_loss))
    result = eqx.filter_jit(exact_hypergradient)(
        model, coreset, images, targets, l2_rate=L2_RATE, solver=lx.Cholesky()
    )
    for seed in range(3):
        draw = functools.partial(jr.normal, jr.key(seed))
        direction = jax.tree.map(lambda x, draw=draw: draw(x.shape, x.dtype), coreset)
        step = 1e-6
        ahead, behind = (
            loss(jax.tree.map(lambda x, d: x + s * step * d, coreset, direction))  # noqa: B023
            for s in (1, -1)
        )
        slope = flat(result.gradient) @ flat(direction)
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)


def test_equals_direct_plus_implicit_of_the_reparameterized_problem(problem):
    """Section 3.3 with both loops run to convergence, by dense Hessians of the body alone."""
    model, coreset, images, targets = problem
    body, head = partition(model)
    body, static = eqx.partition(body, eqx.is_inexact_array)
    theta0, unravel = jax.flatten_util.ravel_pytree(body)
    l2 = L2_RATE * N

    def displaced(X, theta_B):
        """J_B(X) θ_B and h(X) at the base parameters."""

        def outputs(b):
            network = eqx.combine(b, static, head)
            h = network.features(X)
            return network.head(h), h

        _, offset, h = jax.jvp(outputs, (body,), (unravel(theta_B),), has_aux=True)
        return offset, h

    def optimal_head(theta_B, coreset):
        offset, h = displaced(coreset.images, theta_B)
        return offset, h, ridge_head(h, coreset.labels - offset, l2)

    def inner(theta_B, coreset):
        offset, h, theta_F = optimal_head(theta_B, coreset)
        misfit = coreset.labels - offset - h @ theta_F
        return 0.5 * jnp.sum(misfit**2) + l2 / 2 * (theta_B @ theta_B + jnp.sum(theta_F**2))

    def outer(theta_B, coreset):
        theta_F = optimal_head(theta_B, coreset)[2]
        offset, h = displaced(images, theta_B)
        return platt_loss(offset + h @ theta_F, targets, coreset.log_temperature)

    @jax.jit
    def by_dense_hessian(coreset):
        zero = jnp.zeros_like(theta0)
        H = jax.hessian(inner)(zero, coreset)
        theta_B = -jnp.linalg.solve(H, jax.grad(inner)(zero, coreset))
        v = jnp.linalg.solve(H, jax.grad(outer)(theta_B, coreset))
        value, direct = jax.value_and_grad(outer, argnums=1)(theta_B, coreset)
        implicit = jax.grad(lambda c: jax.grad(inner)(theta_B, c) @ v)(coreset)
        stationarity = jnp.linalg.norm(jax.grad(inner)(theta_B, coreset))
        return value, jax.tree.map(jnp.subtract, direct, implicit), stationarity

    value, expected, stationarity = by_dense_hessian(coreset)
    assert stationarity < 1e-10
    result = eqx.filter_jit(exact_hypergradient)(
        model, coreset, images, targets, l2_rate=L2_RATE, solver=lx.Cholesky()
    )
    np.testing.assert_allclose(result.value, value, rtol=1e-10)
    assert relative_error(result.gradient.images, expected.images) < 1e-8
    assert relative_error(result.gradient.labels, expected.labels) < 1e-8


def test_works_under_vmap_over_networks(problem):
    model, coreset, images, targets = problem
    models = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), model)

    @eqx.filter_jit
    def solve(m):
        return exact_hypergradient(
            m, coreset, images, targets, l2_rate=L2_RATE, solver=lx.Cholesky()
        )

    together = eqx.filter_jit(eqx.filter_vmap(solve))(models)
    for i in range(2):
        alone = solve(jax.tree.map(lambda x: x[i], models))  # noqa: B023
        got = jax.tree.map(lambda x: x[i], together)  # noqa: B023
        assert relative_error(got.gradient, alone.gradient) < 1e-10


@pytest.mark.parametrize("outer_loss", [platt_loss, mse_loss])
def test_head_only_equals_autodiff_through_primal_ridge(problem, outer_loss):
    """The head's normal equations, H × H, against the n × n kernel system of the library."""
    model, coreset, images, targets = problem
    h_T = model.features(images)

    def loss(coreset):
        h = model.features(coreset.images)
        A = h.T @ h + L2_RATE * N * jnp.eye(h.shape[1])
        f_T = h_T @ jnp.linalg.solve(A, h.T @ coreset.labels)
        return outer_loss(f_T, targets, coreset.log_temperature)

    value, gradient = jax.jit(jax.value_and_grad(loss))(coreset)
    result = eqx.filter_jit(head_hypergradient)(
        model, coreset, images, targets, l2_rate=L2_RATE, outer_loss=outer_loss
    )
    np.testing.assert_allclose(result.value, value, rtol=1e-10)
    assert relative_error(result.gradient.images, gradient.images) < 1e-8
    assert relative_error(result.gradient.labels, gradient.labels) < 1e-8


@pytest.mark.parametrize("method", [rcig, frepo, PAPER])
def test_margin_is_subtracted_from_the_outer_loss(problem, method):
    model, coreset, images, targets = problem

    @jax.jit  # one program, as two may round apart
    def both(*problem):
        return [
            method(margin=margin).hypergradient(*problem, key=jr.key(0)) for margin in (False, True)
        ]

    plain, less = both(model, coreset, images, targets)
    margin, slope = jax.value_and_grad(label_margin)(coreset.labels)
    np.testing.assert_allclose(less.value, plain.value - margin, rtol=1e-12)
    np.testing.assert_allclose(less.gradient.labels, plain.gradient.labels - slope, rtol=1e-12)
    np.testing.assert_array_equal(less.gradient.images, plain.gradient.images)


@pytest.mark.parametrize(
    ("unknowns", "parameters", "expected"),
    [
        (200, 10**9, ConjugateGradient()),
        (201, 10**6, lx.Cholesky()),
        (2000, 200_000, lx.Cholesky()),
        (2000, 200_001, ConjugateGradient(1e-4, 300)),
        (2001, 1, ConjugateGradient(1e-4, 300)),
    ],
)
def test_the_dual_solver_goes_by_size(unknowns, parameters, expected):
    assert choose_dual_solver(unknowns, parameters) == expected
    labels = ConjugateGradient(1e-2, 300) if expected == ConjugateGradient(1e-4, 300) else expected
    assert choose_dual_solver(unknowns, parameters, labels=True) == labels
