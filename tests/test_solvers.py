"""Linearisation, ridge head, losses and dual solvers, each against its dense closed form."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from rcig_eqx import (
    convnet_for,
    inner_loss,
    kernel_ridge,
    label_margin,
    linearize,
    mse_loss,
    platt_loss,
    ridge_head,
)
from rcig_eqx.solvers import (
    ConjugateGradient,
    DualCG,
    DualCholesky,
    dual_gram,
    dual_operator,
    head_preconditioner,
)

N, CLASSES = 6, 3


@pytest.fixture(scope="module")
def network():
    """A small network with random biases, images, and its explicit Jacobian [n·classes, P]."""
    model = convnet_for((8, 8, 1), CLASSES, width=3, depth=2, softplus=5.0)(jr.key(0))
    model = jax.tree.map(lambda x: x + 0.1 * jr.normal(jr.key(1), x.shape), model)
    images = jr.normal(jr.key(2), (N, 8, 8, 1))
    theta, unravel = jax.flatten_util.ravel_pytree(model)
    J = jax.jit(jax.jacrev(lambda t: unravel(t)(images).ravel()))(theta)
    return model, images, J, unravel


def close(a, b, rtol=1e-4):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))


def test_linearization_products(network):
    model, images, J, unravel = network

    @jax.jit
    def products(theta, u):
        at = linearize(model, images)
        return at.jvp(unravel(theta)), at.vjp(u), at.features

    theta, u = jr.normal(jr.key(3), (J.shape[1],)), jr.normal(jr.key(4), (N, CLASSES))
    tangent, cotangent, features = products(theta, u)
    close(tangent, (J @ theta).reshape(N, CLASSES))
    assert jax.tree.structure(cotangent) == jax.tree.structure(model)
    close(jax.flatten_util.ravel_pytree(cotangent)[0], J.T @ u.ravel())
    close(features, model.features(images))


def test_linearization_is_centred(network):
    model, images, *_ = network
    zero = jax.tree.map(jnp.zeros_like, model)
    assert not linearize(model, images).jvp(zero).any()
    assert jnp.abs(model(images)).max() > 0.1


@pytest.mark.parametrize("block_rows", [3, 9, 1000])
def test_dual_gram_and_operator(network, monkeypatch, block_rows):
    """Blocks of one image, of three with two left over, and all at once."""
    model, images, J, _ = network
    monkeypatch.setattr("rcig_eqx.solvers._dual.JACOBIAN_ROWS", block_rows)
    K = jax.jit(dual_gram)(model, images)
    close(K, J @ J.T)
    operator = dual_operator(linearize(model, images), 0.7)
    u = jr.normal(jr.key(5), (N, CLASSES))
    close(operator.mv(u).ravel(), (J @ J.T + 0.7 * jnp.eye(N * CLASSES)) @ u.ravel())


def test_head_preconditioner(network):
    model, images, *_ = network
    h = model.features(images)
    u = jr.normal(jr.key(6), (N, CLASSES))
    got = head_preconditioner(h, 0.5, CLASSES).mv(u)
    close(got, jnp.linalg.solve(h @ h.T + 0.5 * jnp.eye(N), u), rtol=1e-3)


@pytest.mark.parametrize("solver", [DualCholesky(), DualCG(rtol=1e-5)])
def test_dual_solvers(network, solver):
    model, images, J, _ = network
    b, l2 = jr.normal(jr.key(7), (N, CLASSES)), 0.05
    exact = jnp.linalg.solve(J @ J.T + l2 * jnp.eye(b.size), b.ravel()).reshape(b.shape)

    @eqx.filter_jit
    def solve():
        return solver.prepare(model, images, linearize(model, images), l2).solve(b)

    solution = solve()
    assert solution.value.dtype == b.dtype
    close(solution.value, exact, rtol=2e-3)
    assert solution.residual < 1e-4
    assert solution.result == lx.RESULTS.successful


def test_dual_solvers_of_nothing(network):
    """b = 0: x = 0 and no residual, by either route."""
    model, images, *_ = network
    for solver in (DualCholesky(), DualCG()):
        system = solver.prepare(model, images, linearize(model, images), 0.1)
        solution = system.solve(jnp.zeros((N, CLASSES)))
        assert not solution.value.any()
        assert solution.residual == 0


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_dual_cholesky_keeps_dtypes_with_x64_on(network, dtype):
    model, images, *_ = network
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        b = jnp.ones((N, CLASSES), jnp.float32)
        assert dual_gram(model, images).dtype == jnp.float32
        system = DualCholesky(dtype).prepare(model, images, linearize(model, images), 0.1)
        solution = system.solve(b)
    assert solution.value.dtype == solution.residual.dtype == jnp.float32
    assert 0 < solution.residual < (1e-12 if dtype else 1e-4)  # not rounded away


def test_labels_have_a_tolerance_of_their_own(network):
    model, images, *_ = network
    system = DualCG(1e-5, label_rtol=1e-1).prepare(model, images, linearize(model, images), 1e-3)
    b = jr.normal(jr.key(8), (N, CLASSES))
    rough, close_ = system.solve(b, labels=True), system.solve(b)
    assert rough.converged
    assert 1e-5 < rough.residual <= 1e-1
    assert rough.num_steps < close_.num_steps
    assert close_.residual <= 1e-5


@pytest.mark.parametrize("l2", [1e-6, 1e-4, 1e-2])
def test_dual_cg_reports_the_true_residual(network, l2):
    """In float32, where its recurrence falls on and b − K x, taken in float64, does not."""
    model, images, *_ = network
    rtol, b = 1e-4, jr.normal(jr.key(8), (N, CLASSES))
    small = 1e-2 * images
    system = DualCG(rtol, 300).prepare(model, small, linearize(model, small), l2)
    solution = system.solve(b)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (model, small))
        K = np.asarray(dual_gram(*wide)) + l2 * np.eye(b.size)
    x, right = (np.asarray(a, np.float64).ravel() for a in (solution.value, b))
    true = np.linalg.norm(right - K @ x) / np.linalg.norm(right)
    assert 0.5 * true < solution.residual < 3 * true  # where rounding decides, a bound from above
    assert bool(solution.converged) == (solution.residual <= rtol) == (l2 == 1e-2)
    assert solution.products - solution.num_steps <= 4  # what it costs to know


def test_dual_cg_reports_its_cap(network):
    model, images, *_ = network
    system = DualCG(rtol=1e-6, max_steps=2).prepare(model, images, linearize(model, images), 1e-3)
    solution = system.solve(jnp.ones((N, CLASSES)))
    assert solution.num_steps == 2
    assert solution.residual > 1e-6
    assert solution.result == lx.RESULTS.max_steps_reached
    assert not solution.converged


def spd(n, condition):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    return jnp.asarray((Q * np.geomspace(1, 1 / condition, n)) @ Q.T, jnp.float32)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3])
def test_conjugate_gradient(condition, preconditioned):
    A = spd(30, condition)
    operator = lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag)
    inverse = lx.MatrixLinearOperator(jnp.linalg.inv(A), lx.positive_semidefinite_tag)
    options = {"preconditioner": inverse} if preconditioned else {}
    b = jr.normal(jr.key(0), (3, 30))

    @jax.jit
    @jax.vmap
    def solve(b):
        solution = lx.linear_solve(operator, b, ConjugateGradient(rtol=1e-4), options=options)
        return solution.value, solution.stats["num_steps"], solution.stats["residual"]

    x, steps, residual = solve(b)
    true_residual = jnp.linalg.norm(b - x @ A, axis=1) / jnp.linalg.norm(b, axis=1)
    assert jnp.all(residual <= 1e-4)
    np.testing.assert_allclose(residual, true_residual, atol=5e-5)  # the recurrence's drift
    if preconditioned or condition == 1.0:
        assert jnp.all(steps <= 3)


def test_conjugate_gradient_limits():
    A = spd(5, 10.0)
    operator = lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag)
    zero = lx.linear_solve(operator, jnp.zeros(5), ConjugateGradient())
    assert not zero.value.any()
    assert zero.stats["num_steps"] == 0
    nan = lx.linear_solve(operator, jnp.full(5, jnp.nan), ConjugateGradient(), throw=False)
    assert nan.result == lx.RESULTS.breakdown
    with pytest.raises(ValueError, match="positive_semidefinite_tag"):
        lx.linear_solve(lx.MatrixLinearOperator(A), jnp.ones(5), ConjugateGradient())


def test_conjugate_gradient_can_be_differentiated():
    """Through lineax's implicit rule: d/db of sum(A⁻¹ b) is A⁻¹ 1."""
    A = spd(5, 10.0)

    def total(b):
        operator = lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag)
        return jnp.sum(lx.linear_solve(operator, b, ConjugateGradient(rtol=1e-6)).value)

    close(jax.grad(total)(jnp.ones(5)), jnp.linalg.solve(A, jnp.ones(5)), rtol=1e-3)


def test_ridge():
    h, y = jr.normal(jr.key(0), (7, 20)), jr.normal(jr.key(1), (7, CLASSES))
    alpha = jax.jit(kernel_ridge)(h @ h.T, y, 0.3)
    close(alpha, jnp.linalg.solve(h @ h.T + 0.3 * jnp.eye(7), y), rtol=1e-3)
    primal = jnp.linalg.solve(h.T @ h + 0.3 * jnp.eye(20), h.T @ y)
    close(ridge_head(h, y, 0.3), primal, rtol=1e-3)


def test_ridge_of_what_is_not_finite_is_not_finite():
    """And raises nothing: a step with such a network is rejected, a search goes on."""
    loss = lambda K, y: jnp.sum(kernel_ridge(K, y, 0.1) ** 2)  # noqa: E731
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    nan = jnp.full((3, 3), jnp.nan)
    for K, y in ((jnp.eye(3), nan), (nan, jnp.ones((3, 3)))):
        assert not np.isfinite(kernel_ridge(K, y, 0.1)).any()
        assert not np.isfinite(gradient(K, y)[1]).any()


def test_ridge_derivatives_are_those_of_the_closed_form():
    h, y = jr.normal(jr.key(0), (4, 9)) / 3, jr.normal(jr.key(1), (4, 2))
    ours = lambda h, y: jnp.sum(jnp.sin(kernel_ridge(h @ h.T, y, 0.3)))  # noqa: E731
    dense = lambda h, y: jnp.sum(jnp.sin(jnp.linalg.inv(h @ h.T + 0.3 * jnp.eye(4)) @ y))  # noqa: E731
    for order in (jax.grad, jax.hessian):
        got, expected = (jax.jit(order(f, argnums=(0, 1)))(h, y) for f in (ours, dense))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            close(a, b)


def test_ridge_in_float64_is_more_exact_and_casts_back():
    """An ill-conditioned kernel, where float32 loses what the wider solve keeps."""
    rng = np.random.default_rng(0)
    h = (rng.normal(size=(30, 30)) * np.geomspace(1, 1e-3, 30)).astype(np.float32)
    y = rng.normal(size=(30, 2)).astype(np.float32)
    K = h @ h.T
    exact = np.linalg.solve(K.astype(np.float64) + 1e-6 * np.eye(30), y)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        kernel_ridge(jnp.asarray(K), jnp.asarray(y), 1e-6, dtype=jnp.float64)
    with jax.enable_x64(True):
        wide = kernel_ridge(jnp.asarray(K), jnp.asarray(y), 1e-6, dtype=jnp.float64)
        narrow = kernel_ridge(jnp.asarray(K), jnp.asarray(y), 1e-6)
    assert wide.dtype == narrow.dtype == jnp.float32
    error = lambda x: np.linalg.norm(x - exact) / np.linalg.norm(exact)  # noqa: E731
    assert error(wide) < 1e-6
    assert error(narrow) > 1e-3


def test_losses():
    f = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])
    t = jax.nn.one_hot(jnp.array([0, 1]), 3)
    theta = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])}
    close(inner_loss(f, t, theta, 0.1), 0.5 * jnp.sum((t - f) ** 2) + 0.05 * 14)
    scaled = 2.0 * f
    cross_entropy = -jnp.mean(jnp.sum(t * jax.nn.log_softmax(scaled), -1))
    close(platt_loss(f, t, jnp.log(2.0)), cross_entropy)
    close(mse_loss(f, t, jnp.zeros(())), 0.5 * jnp.mean(jnp.sum((f - t + 1 / 3) ** 2, -1)))


def test_label_margin():
    y = jnp.array([[0.5, 0.45, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]])
    close(label_margin(y), (0.05 + 1 / 8) / 2)
    slope = jax.grad(label_margin)(y)
    close(slope, jnp.array([[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
