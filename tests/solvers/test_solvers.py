"""Linearization, ridge head, losses and the dual system, each against its dense closed form."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from rcig_eqx import SquaredError, convnet_for, mse_loss, platt_loss
from rcig_eqx._losses import label_margin
from rcig_eqx._ridge import kernel_ridge
from rcig_eqx.methods import linearize, ridge_head
from rcig_eqx.operators import NTK, LeastSquaresKernel
from rcig_eqx.operators._kernel import woodbury
from rcig_eqx.solvers import ConjugateGradient
from rcig_eqx.solvers._dual import prepare_kernel

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


def test_linearization_is_centered(network):
    model, images, *_ = network
    zero = jax.tree.map(jnp.zeros_like, model)
    assert not linearize(model, images).jvp(zero).any()
    assert jnp.abs(model(images)).max() > 0.1


# name: W [N classes] or None, what the head counts for or None
KERNELS = {
    "plain": (None, None),
    "weighted": (jnp.linspace(0.3, 3.0, N * CLASSES).reshape(N, CLASSES), None),
    "heavy_head": (None, 2.5),
    "both": (jnp.linspace(2.0, 0.5, N * CLASSES).reshape(N, CLASSES), 0.4),
}


def dense_kernel(network, name, l2):
    """J D⁻¹ Jᵀ + l2 W⁻¹ by the explicit Jacobian, and the options of the operator."""
    _, _, J, unravel = network
    weights, head_weight = KERNELS[name]
    where = jax.tree.map(jnp.zeros_like, unravel(J[0]))
    where = eqx.tree_at(lambda m: m.head.kernel, where, replace_fn=jnp.ones_like)
    is_head = jax.flatten_util.ravel_pytree(where)[0]
    D = 1 / (1 + is_head * ((head_weight or 1.0) - 1))
    noise = l2 / (jnp.ones(J.shape[0]) if weights is None else weights.ravel())
    return (
        (J / D[None]) @ J.T + jnp.diag(noise),
        D,
        {"weights": weights, "head_weight": head_weight},
    )


@pytest.mark.parametrize(("block_rows", "name"), [(3, "plain"), (9, "both"), (1000, "weighted")])
def test_the_kernel_as_product_and_as_matrix(network, monkeypatch, block_rows, name):
    """Blocks of one image, of three with two left over, and all at once."""
    model, images, *_ = network
    monkeypatch.setattr("rcig_eqx.operators._gram.JACOBIAN_ROWS", block_rows)
    dense, _, options = dense_kernel(network, name, 0.7)
    u = jr.normal(jr.key(5), (N, CLASSES))

    @eqx.filter_jit
    def forms(u):
        K = NTK(model, images, 0.7, **options)
        assert K.transpose() is lx.linearise(K) is lx.conj(K) is K
        assert lx.is_symmetric(K)
        assert lx.is_positive_semidefinite(K)
        assert not lx.is_diagonal(K)
        assert not lx.is_negative_semidefinite(K)
        assert K.in_structure() == K.out_structure() == jax.eval_shape(lambda: u)
        matrix = lx.materialise(K)
        return K.mv(u), matrix.mv(u), K.as_matrix(), matrix.as_matrix(), lx.diagonal(matrix)

    product, of_matrix, matrix, same, diagonal = forms(u)
    close(product.ravel(), dense @ u.ravel())
    close(of_matrix.ravel(), dense @ u.ravel())
    close(matrix, dense)
    close(same, dense)
    close(diagonal, jnp.diagonal(dense))


@pytest.mark.parametrize("name", KERNELS)
def test_the_preconditioner_leaves_the_body_out(network, name):
    model, images, *_ = network
    weights, head_weight = KERNELS[name]
    h, u = model.features(images), jr.normal(jr.key(6), (N, CLASSES))
    noise = 0.5 / (jnp.ones((N, CLASSES)) if weights is None else weights)
    options = {"weights": weights, "head_weight": head_weight}
    got = jax.jit(lambda u: NTK(model, images, 0.5, **options).preconditioner().mv(u))(u)
    for c in range(CLASSES):
        A = (head_weight or 1.0) * h @ h.T + jnp.diag(noise[:, c])
        close(got[:, c], jnp.linalg.solve(A, u[:, c]), rtol=1e-3)


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        (lx.Cholesky(), "both"),
        (lx.LU(), "plain"),
        (ConjugateGradient(rtol=1e-5), "plain"),
        (ConjugateGradient(rtol=1e-5), "both"),
        (lx.CG(1e-5, 1e-5), "weighted"),
    ],
)
def test_solves_with_the_kernel(network, solver, name):
    """With ours and with lineax's own, by itself and accounted for."""
    model, images, *_ = network
    b, l2 = jr.normal(jr.key(7), (N, CLASSES)), 0.05
    dense, _, options = dense_kernel(network, name, l2)
    exact = jnp.linalg.solve(dense, b.ravel()).reshape(b.shape)

    @eqx.filter_jit
    def solve(b):
        K = NTK(model, images, l2, **options)
        (prepared,) = prepare_kernel(K, solver)
        return prepared.solve(b), lx.linear_solve(K, b, solver, throw=False).value

    (value, stats), plain = solve(b)
    assert value.dtype == b.dtype
    close(value, exact, rtol=2e-3)
    close(plain, exact, rtol=5e-3)
    assert stats["residual"] < 1e-4
    assert stats["converged"]
    assert not stats["diverged"]
    direct = isinstance(solver, lx.Cholesky | lx.LU)
    assert (stats["iterations"] == 0) == direct
    assert (stats["products"] == b.size) == direct


def test_solves_with_the_kernel_of_nothing(network):
    """b = 0: x = 0 and no residual, by either route."""
    model, images, *_ = network
    for solver in (lx.Cholesky(), ConjugateGradient()):
        (prepared,) = prepare_kernel(NTK(model, images, 0.1), solver)
        value, stats = prepared.solve(jnp.zeros((N, CLASSES)))
        assert not value.any()
        assert stats["residual"] == 0


@pytest.mark.parametrize("name", KERNELS)
def test_woodbury(network, name):
    """D⁻¹ (g − Jᵀβ) against the primal system of the explicit Jacobian."""
    model, images, J, unravel = network
    weights = KERNELS[name][0]
    g, l2 = jr.normal(jr.key(9), (J.shape[1],)), 0.3
    _, D, options = dense_kernel(network, name, l2)
    W = jnp.ones(J.shape[0]) if weights is None else weights.ravel()
    expected = jnp.linalg.solve(J.T @ (W[:, None] * J) + jnp.diag(l2 * D), g)

    @jax.jit
    def solve(g):
        K = NTK(model, images, l2, **options)
        (prepared,) = prepare_kernel(K, lx.Cholesky())
        Dv, _, _ = woodbury(K, unravel(g), prepared.solve)
        return jax.tree.map(lambda x: x / K.scale, K.weigh(Dv))

    close(jax.flatten_util.ravel_pytree(solve(g))[0], expected, rtol=2e-3)


def test_the_kernel_of_a_general_least_squares_problem():
    A, d = jr.normal(jr.key(0), (6, 4)), jnp.array([0.5, 1.0, 2.0, 4.0])
    K = LeastSquaresKernel(lambda w: {"a": A[:2] @ w, "b": A[2:] @ w}, jnp.zeros(4), d)
    dense = A @ jnp.diag(1 / d) @ A.T + jnp.eye(6)
    close(K.as_matrix(), dense)
    close(K.mv(jnp.arange(6.0)), dense @ jnp.arange(6.0))
    assert K.preconditioner() is None


def test_solves_with_the_kernel_keep_dtypes_with_x64_on(network):
    model, images, *_ = network
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        b = jnp.ones((N, CLASSES), jnp.float32)
        K = NTK(model, images, 0.1)
        assert K.as_matrix().dtype == jnp.float32
        (prepared,) = prepare_kernel(K, lx.Cholesky())
        value, stats = prepared.solve(b)
    assert value.dtype == stats["residual"].dtype == jnp.float32
    assert 0 < stats["residual"] < 1e-4  # not rounded away


def test_one_solver_twice_is_prepared_once(network):
    model, images, *_ = network
    K, cg = NTK(model, images, 1e-3), ConjugateGradient(1e-5)
    tight, rough, again = prepare_kernel(K, cg, ConjugateGradient(1e-1), ConjugateGradient(1e-5))
    assert again is tight
    b = jr.normal(jr.key(8), (N, CLASSES))
    (_, loose), (_, close_) = rough.solve(b), tight.solve(b)
    assert loose["converged"]
    assert 1e-5 < loose["residual"] <= 1e-1
    assert loose["iterations"] < close_["iterations"]
    assert close_["residual"] <= 1e-5


@pytest.mark.parametrize("l2", [1e-6, 1e-4, 1e-2])
def test_a_solve_with_the_kernel_reports_the_true_residual(network, l2):
    """In float32, where its recurrence falls on and b − K x, taken in float64, does not."""
    model, images, *_ = network
    rtol, b = 1e-4, jr.normal(jr.key(8), (N, CLASSES))
    small = 1e-2 * images
    (prepared,) = prepare_kernel(NTK(model, small, l2), ConjugateGradient(rtol, 300))
    value, stats = prepared.solve(b)
    with jax.enable_x64(True):
        wide, images = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (model, small))
        K = np.asarray(NTK(wide, images, l2).as_matrix())
    x, right = (np.asarray(a, np.float64).ravel() for a in (value, b))
    true = np.linalg.norm(right - K @ x) / np.linalg.norm(right)
    assert 0.5 * true < stats["residual"] < 3 * true  # where rounding decides, a bound from above
    assert bool(stats["converged"]) == (stats["residual"] <= rtol) == (l2 == 1e-2)
    assert stats["products"] - stats["iterations"] <= 4  # what it costs to know


def test_a_solve_with_the_kernel_reports_its_cap(network):
    model, images, *_ = network
    (prepared,) = prepare_kernel(NTK(model, images, 1e-3), ConjugateGradient(1e-6, max_steps=2))
    _, stats = prepared.solve(jnp.ones((N, CLASSES)))
    assert (stats["iterations"], stats["products"]) == (2, 2)  # none closes: rounding is far
    assert stats["residual"] > 1e-6
    assert not stats["converged"]
    assert not stats["diverged"]


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
    close(SquaredError()(f, t), 0.5 * jnp.sum((t - f) ** 2))
    scaled = 2.0 * f
    cross_entropy = -jnp.mean(jnp.sum(t * jax.nn.log_softmax(scaled), -1))
    close(platt_loss(f, t, jnp.log(2.0)), cross_entropy)
    close(mse_loss(f, t, jnp.zeros(())), 0.5 * jnp.mean(jnp.sum((f - t + 1 / 3) ** 2, -1)))


def test_label_margin():
    y = jnp.array([[0.5, 0.45, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]])
    close(label_margin(y), (0.05 + 1 / 8) / 2)
    slope = jax.grad(label_margin)(y)
    close(slope, jnp.array([[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
