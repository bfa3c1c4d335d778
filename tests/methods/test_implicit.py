"""The primal route in float64: solvers against a dense Hessian, methods against dense algebra."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from _problem import (
    CLASSES,
    exact_hypergradient,
    head_hypergradient,
    implicit_hypergradient,
    random_problem,
)
from rcig_eqx import Coreset, PoolSchedule, SquaredError, mse_loss, platt_loss, presets
from rcig_eqx.methods import (
    cig,
    clip_implicit,
    frepo,
    rcig,
    rcig_paper,
    rig,
    staged,
    vig,
)
from rcig_eqx.models import partition
from rcig_eqx.operators import gauss_newton_operator, hessian_operator
from rcig_eqx.run._guard import raise_l2
from rcig_eqx.run._loop import say_what_fell_short
from rcig_eqx.solvers import (
    AbstractDefiniteSolver,
    Adam,
    ConjugateGradient,
    Dual,
    Neumann,
    Traits,
    largest_eigenvalue,
)

N, BATCH, SIZE = 3, 5, 6
L2_RATE = 0.02
CG = ConjugateGradient(1e-13, 2000)


@pytest.fixture(scope="module", autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def setting():
    """A network, a distilled set and an outer batch, all float64 and random."""
    return random_problem(N, BATCH, SIZE, width=2, depth=1)


@pytest.fixture(scope="module")
def inner(setting):
    """An ordinary network's inner loss, its parameters, a vector, and the dense Hessian there."""
    model, coreset, _, _ = setting
    theta, static = eqx.partition(model, eqx.is_inexact_array)

    def outputs(theta):
        return eqx.combine(theta, static)(coreset.images)

    def convex(f):
        return 0.5 * jnp.sum((f - coreset.labels) ** 2)

    flat, unravel = ravel_pytree(theta)
    vector = unravel(jr.normal(jr.key(7), flat.shape))
    H = jax.jit(jax.hessian(lambda t: convex(outputs(unravel(t)))))(flat)
    J = jax.jit(jax.jacrev(lambda t: outputs(unravel(t)).ravel()))(flat)
    return outputs, convex, theta, vector, np.asarray(H), np.asarray(J.T @ J)


@pytest.fixture(scope="module")
def exact(setting):
    """The exact hypergradient."""
    return run(exact_hypergradient, setting, l2_rate=L2_RATE, solver=lx.Cholesky())


def run(function, arguments, **given):
    return jax.jit(functools.partial(function, **given))(*arguments)


def flat(tree) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def relative(a, b) -> float:
    a, b = flat(a), flat(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_hessian_and_gauss_newton_products(inner):
    outputs, convex, theta, vector, H, G = inner
    hessian = hessian_operator(lambda t: convex(outputs(t)), theta, damping=0.3)
    gauss_newton = gauss_newton_operator(outputs, convex, theta, damping=0.3)
    assert relative(hessian.mv(vector), H @ flat(vector) + 0.3 * flat(vector)) < 1e-12
    assert relative(gauss_newton.mv(vector), G @ flat(vector) + 0.3 * flat(vector)) < 1e-12
    assert np.linalg.eigvalsh(H).min() < -1e-3  # away from a minimum: why Gauss–Newton is there
    structures = jax.tree.structure(vector), jax.tree.structure(hessian.mv(vector))
    assert structures[0] == structures[1]


# name: solver for (Gauss–Newton matrix + shift), relative error to reach
SOLVERS = {
    "cg": (lambda shift: ConjugateGradient(1e-11, 500), 1e-9),
    "neumann": (lambda shift: Neumann(100_000, rtol=1e-9), 1e-6),
    "adam": (lambda shift: Adam(3e-2, 4000), 1e-2),
}


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_against_a_dense_matrix(inner, name, damping):
    """With and without damping, alone and under vmap; the residual they report is the true one."""
    outputs, convex, theta, vector, _, G = inner
    make, tolerance = SOLVERS[name]
    shift = 0.2 + damping  # an L2 term, without which the matrix is singular
    dense = G + shift * np.eye(len(G))
    operator = gauss_newton_operator(outputs, convex, theta, damping=shift)

    @jax.jit
    def solve(vector):
        solution = lx.linear_solve(operator, vector, make(shift), throw=False)
        return solution.value, solution.stats, solution.result == lx.RESULTS.successful

    x, stats, good = solve(vector)
    assert good
    assert jax.tree.structure(x) == jax.tree.structure(vector)
    assert {leaf.dtype for leaf in jax.tree.leaves(x)} == {jnp.dtype("float64")}
    assert relative(x, np.linalg.solve(dense, flat(vector))) < tolerance
    true = np.linalg.norm(flat(vector) - dense @ flat(x)) / np.linalg.norm(flat(vector))
    late = name == "adam"  # reports the gradient one step before the end
    assert float(stats["residual"]) == pytest.approx(true, rel=0.5 if late else 1e-3, abs=1e-10)
    if name in (spent := {"adam": 4000}):
        assert int(stats["num_steps"]) == spent[name]
    assert stats["num_steps"].dtype == jnp.int32
    if damping:
        both = jax.vmap(solve)(jax.tree.map(lambda v: jnp.stack([v, 2 * v]), vector))[0]
        second = jax.tree.map(lambda v: v[1] / 2, both)
        assert relative(second, x) < max(tolerance, 1e-8)


class Looser(AbstractDefiniteSolver):
    """A solver of one's own, with a number in an array."""

    loosely: jax.Array

    @property
    def traits(self):
        return Traits(direct=True)

    def advice(self, stats):
        return "Tighten it."

    def init(self, operator, options):
        return lx.Cholesky().init(operator, options)

    def compute(self, state, vector, options):
        x, result, stats = lx.Cholesky().compute(state, vector, options)
        return jax.tree.map(lambda x: x * self.loosely, x), result, stats


def test_a_solver_of_ones_own_may_hold_arrays(setting, exact):
    one = Dual(Looser(jnp.ones(())))
    given = {"l2_rate": L2_RATE, "inner": one, "solver": one}
    got = run(implicit_hypergradient, setting, **given)
    assert relative(got.gradient, exact.gradient) < 1e-9
    alone = run(exact_hypergradient, setting, l2_rate=L2_RATE, solver=one.solver)
    assert relative(alone.gradient, exact.gradient) < 1e-12


def test_neumann_names_the_condition_it_needs(inner):
    outputs, convex, theta, vector, _, G = inner
    operator = gauss_newton_operator(outputs, convex, theta, damping=0.2)
    largest = np.linalg.eigvalsh(G).max() + 0.2
    assert float(largest_eigenvalue(operator, steps=50)) == pytest.approx(largest, rel=1e-2)
    assert float(largest_eigenvalue(operator, steps=5)) <= largest * (1 + 1e-12)

    def stats_of(step_size):
        solver = Neumann(30, step_size=step_size, power_steps=100)
        return lx.linear_solve(operator, vector, solver, throw=False)

    good, bad = stats_of(1.9 / largest), stats_of(2.1 / largest)
    assert good.result == lx.RESULTS.successful
    assert bad.result == lx.RESULTS.breakdown
    assert float(bad.stats["step_times_curvature"]) == pytest.approx(2.1, rel=1e-2)
    assert float(bad.stats["residual"]) > float(good.stats["residual"])


def test_a_run_names_the_condition_that_its_neumann_series_broke(setting):
    method = rcig_paper(inner=Adam(1e-3, 2), solver=Neumann(3, step_size=1e4))
    stats = run(method.hypergradient, setting, key=jr.key(0)).stats
    assert not stats["converged"]
    assert stats["step_times_curvature"] > 2
    history = {name: [float(value)] for name, value in stats.items()} | {"loss": [1.0]}
    with pytest.warns(RuntimeWarning, match=r"below 2; that was \d+\.\d when it first failed"):
        say_what_fell_short(history, method)


def test_residuals_without_a_number_are_counted_apart():
    history = {"loss": [1.0] * 3, "converged": [0.0] * 3, "residual": [2e19, np.inf, np.nan]}
    method = rcig_paper(inner=CG, solver=CG)
    with pytest.warns(RuntimeWarning, match=r"residual up to 2\.0e\+19, not finite in 2:"):
        say_what_fell_short(history, method)
    history["residual"] = [np.nan] * 3
    with pytest.warns(RuntimeWarning, match="not finite in 3: .*raise max_steps"):
        say_what_fell_short(history, method)


# name: a method, statistics of a step in which a solve fell short, what it says
ADVICE = {
    "rcig": (rcig(), {}, r"rcig\(solver=ConjugateGradient\(1e-4, 1000\)"),
    "rcig_cg": (rcig(solver=ConjugateGradient()), {}, r"raise max_steps"),
    "rcig_lineax": (rcig(solver=lx.CG(1e-5, 1e-5)), {}, "Raise the max_steps of CG"),
    "dual": (cig(inner=CG, solver=Dual(CG)), {"inner_converged": 1.0}, "an rtol of 1e-6"),
    "inner": (cig(inner=CG, solver=Adam(1.0)), {"inner_converged": 0.0}, "raise max_steps"),
    "adam": (rcig_paper(), {"inner_converged": 1.0}, "a lower learning_rate"),
    "staged": (staged(frepo(), rcig(), 1), {}, r"rcig\(solver="),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_is_the_solvers_own(name):
    method, stats, says = ADVICE[name]
    history = {"loss": [1.0], "converged": [0.0]} | {k: [v] for k, v in stats.items()}
    with pytest.warns(RuntimeWarning, match=says):
        say_what_fell_short(history, method)


def test_a_close_solve_far_from_a_trained_heads_minimum_is_warned_of(setting):
    """It magnifies what the inner descent left in directions of little curvature."""
    short, close = Adam(1e-3, 20), Dual()
    exact = run(cig(inner=close, solver=close).hypergradient, setting, key=jr.key(0))

    def off(method):
        result = run(method.hypergradient, setting, key=jr.key(0))
        history = {name: [float(value)] * 3 for name, value in result.stats.items()}
        error = result.gradient.images - exact.gradient.images
        ratio = jnp.linalg.norm(error) / jnp.linalg.norm(exact.gradient.images)
        return float(ratio), history | {"loss": [1.0] * 3}

    method = cig(inner=short, solver=close)
    magnified, history = off(method)
    assert magnified > 3
    assert magnified > 3 * off(cig(inner=short, solver=short))[0]
    with pytest.warns(RuntimeWarning, match="magnifies what the inner one leaves"):
        say_what_fell_short(history, method)
    method = rcig_paper(inner=short, solver=close, outer_loss=mse_loss)
    error, history = off(method)
    truncated = rcig_paper(inner=short, solver=short, outer_loss=mse_loss)
    assert error < off(truncated)[0]  # where the head is solved for, closer is better
    say_what_fell_short(history, method)  # warnings are errors here
    method = cig(inner=close, solver=close)
    say_what_fell_short(off(method)[1], method)


def test_a_dual_solve_under_a_trained_head_is_judged_by_v(setting):
    """Its own residual says little of v, a difference divided by λ."""

    def at(rtol):
        method = cig(inner=Dual(), solver=Dual(ConjugateGradient(rtol, 100)))
        return run(method.hypergradient, setting, key=jr.key(0)).stats

    rough, fine = at(0.3), at(1e-8)
    assert not rough["converged"]
    assert rough["residual"] > 1
    assert fine["converged"]
    assert fine["residual"] < 1e-4


def test_a_run_whose_descents_diverge_says_so():
    """Each is a success to its solver, which is truncated on purpose."""
    history = {"loss": [1.0] * 5, "solver_diverged": [1.0, 1.0, 0.0, 0.0, 0.0]}
    with pytest.warns(RuntimeWarning, match=r"inverse-Hessian .* 2 of 5 steps.*solver=Adam\(1e-4"):
        say_what_fell_short(history, rcig_paper())


def test_a_neumann_series_that_grew_is_no_success(inner):
    """Too rough an estimate of the curvature shows in the residual."""
    b = jnp.ones(2000)
    largest = lx.DiagonalLinearOperator(b.at[0].set(100.0))
    tagged = lx.TaggedLinearOperator(largest, lx.positive_semidefinite_tag)
    rough = lx.linear_solve(tagged, b, Neumann(10, power_steps=1), throw=False)
    assert float(rough.stats["residual"]) > 1
    assert rough.result == lx.RESULTS.breakdown
    outputs, convex, theta, vector, H, _ = inner
    assert np.linalg.eigvalsh(H).min() < 0
    indefinite = hessian_operator(lambda t: convex(outputs(t)), theta)
    solution = lx.linear_solve(indefinite, vector, Neumann(500), throw=False)
    assert solution.result != lx.RESULTS.successful


def test_an_inner_solve_that_fell_short_is_reported(setting):
    given = {"l2_rate": L2_RATE, "solver": Dual()}
    once = Dual(ConjugateGradient(max_steps=1))
    short = run(implicit_hypergradient, setting, inner=once, **given)
    assert not short.stats["converged"]
    assert float(short.stats["inner_residual"]) > 1e-3
    given["solver"] = lx.CG(1e-9, 1e-9)  # lineax's own solvers tell no residual: it is taken
    measured = run(implicit_hypergradient, setting, inner=lx.CG(1e-12, 1e-12), **given)
    assert measured.stats["converged"]
    assert 0 < float(measured.stats["inner_residual"]) < 1e-10
    assert 0 < float(measured.stats["residual"]) < 1e-7


def test_under_vmap_over_networks(setting):
    model, coreset, images, targets = setting
    other = jax.tree.map(lambda x: 1.1 * x, model)
    both = jax.tree.map(lambda *x: jnp.stack(x), model, other)
    adam = Adam(1e-2, 3)
    method = functools.partial(implicit_hypergradient, l2_rate=L2_RATE, inner=adam, solver=adam)
    over_networks = jax.vmap(method, in_axes=(0, None, None, None))
    together = jax.jit(over_networks)(both, coreset, images, targets)
    alone = run(method, (other, coreset, images, targets))
    assert relative(jax.tree.map(lambda x: x[1], together.gradient), alone.gradient) < 1e-10


def test_neumann_is_its_series(inner):
    outputs, convex, theta, vector, _, G = inner
    operator = gauss_newton_operator(outputs, convex, theta, damping=0.2)
    eta, H = 0.01, G + 0.2 * np.eye(len(G))
    term, total = flat(vector), 0
    for _ in range(7):
        total, term = total + eta * term, term - eta * (H @ term)
    got = lx.linear_solve(operator, vector, Neumann(7, step_size=eta)).value
    assert relative(got, total) < 1e-12


# name: arguments with which the linearized problem is solved to convergence
EXACT = {
    "cg": {"inner": CG, "solver": CG},
    "dual": {"inner": Dual(), "solver": Dual()},
    "dual-cg": {"inner": Dual(CG), "solver": Dual(CG)},
    "neumann": {"inner": Neumann(200_000, rtol=1e-11), "solver": Neumann(200_000, rtol=1e-11)},
}


@pytest.mark.parametrize(
    ("name", "reparameterized"), [*((name, True) for name in EXACT), ("cg", False)]
)
def test_converged_is_exact(setting, reparameterized, name):
    """RCIG and CIG share their minimum, and so their hypergradient."""
    model, coreset, images, targets = setting
    flipped = Coreset(coreset.images, coreset.labels, coreset.log_temperature, flip=True)
    problem = (model, flipped, images, targets)
    given = {"l2_rate": L2_RATE, "reparameterized": reparameterized} | EXACT[name]
    got = run(implicit_hypergradient, problem, **given)
    exact = run(exact_hypergradient, problem, l2_rate=L2_RATE, solver=lx.Cholesky())
    for part in ("images", "labels", "log_temperature"):
        assert relative(getattr(got.gradient, part), getattr(exact.gradient, part)) < 1e-7
    assert float(got.value) == pytest.approx(float(exact.value), rel=1e-10)
    assert float(got.stats["inner_residual"]) < 1e-10
    assert got.stats["converged"]


@pytest.mark.parametrize("reparameterized", [True, False], ids=["rcig", "cig"])
@pytest.mark.parametrize(
    "solver",
    [Dual(), Dual(ConjugateGradient(1e-13, 500)), Neumann(200_000, rtol=1e-12)],
    ids=["dual_cholesky", "dual_cg", "neumann"],
)
def test_damping_of_a_linearised_network(setting, reparameterized, solver):
    """As conjugate gradients on the damped Hessian, of the body alone where the head is solved."""
    weighted = reparameterized == (solver == Dual())
    weights = jnp.linspace(0.5, 2.0, N * CLASSES).reshape(N, CLASSES) if weighted else None
    given = {"l2_rate": L2_RATE, "reparameterized": reparameterized, "damping": 0.7}
    given |= {"inner": Dual(), "inner_loss": SquaredError(weights)}
    got, primal = (run(implicit_hypergradient, setting, solver=s, **given) for s in (solver, CG))
    assert relative(got.gradient, primal.gradient) < 1e-9
    assert got.stats["converged"]


@pytest.mark.parametrize(
    "make", [frepo, functools.partial(rcig_paper, inner=Adam(1e-3, 5), solver=Adam(1e-3, 5))]
)
def test_the_ridge_head_in_double_precision(setting, make):
    """Two images nearly alike and hardly any L2 term: float32 factors nothing, float64 does.

    How near the gradient comes is up to the float32 features in either.
    """
    model, coreset, images, targets = setting
    twice = coreset.images.at[1].set(coreset.images[0] + 1e-3 * coreset.images[1])
    problem = model, dataclasses.replace(coreset, images=twice), images, targets
    problem = jax.tree.map(lambda x: x.astype(jnp.float32), problem)

    def gradient(dtype):
        method = make(l2_rate=1e-7, dtype=dtype)
        return eqx.filter_jit(method.hypergradient)(*problem, key=jr.key(0)).gradient

    double, single = gradient(jnp.float64), gradient(None)
    assert {x.dtype for x in jax.tree.leaves(double)} == {jnp.dtype("float32")}
    assert np.isfinite(flat(double)).all()
    assert not np.isfinite(flat(single)).all()


def test_truncated_adam_nears_the_exact_one(setting, exact):
    errors = []
    for steps in (5, 2000):
        adam = {"inner": Adam(3e-3, steps), "solver": Adam(3e-2, steps), "l2_rate": L2_RATE}
        got = run(implicit_hypergradient, setting, **adam)
        errors.append(relative(got.gradient.images, exact.gradient.images))
    assert errors[0] > 5 * errors[1]
    assert errors[1] < 2e-2


# name: solver for so many parameters, Gauss–Newton matrix or Hessian, relative error to reach
ORDINARY = {
    "cg": (lambda _: CG, False, 1e-8),
    "neumann": (lambda _: Neumann(10_000, rtol=1e-11), False, 1e-8),
    "adam": (lambda _: Adam(3e-3, 20), False, 1e-8),
    "gauss-newton-cg": (lambda _: CG, True, 1e-8),
    "gauss-newton-cholesky": (lambda _: lx.Cholesky(), True, 1e-8),
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("reparameterized", [True, False], ids=["rig", "vig"])
def test_ordinary_networks_against_dense_algebra(setting, reparameterized, name):
    """Direct − ∂/∂ψ ⟨∂L_i/∂θ, H⁻¹g⟩ at the same θ, written without the library.

    In place of H⁻¹g, as many steps of Adam by hand where Adam is the solver: where it ends after
    thousands, rounding decides.
    """
    make, gauss_newton, tolerance = ORDINARY[name]
    model, coreset, images, targets = setting
    l2, damping, steps = L2_RATE * N, 3.0, 20
    body, head = partition(model)
    theta0, unravel = ravel_pytree(body if reparameterized else (body, head))

    def network(t, X, y):
        """The network of θ, its head kernel, and what the L2 term is of."""
        parts = unravel(t)
        body = parts if reparameterized else parts[0]
        net = eqx.combine(body, head)
        h = net.features(X)
        if reparameterized:
            K = h @ h.T + l2 * jnp.eye(len(X))
            kernel = h.T @ jnp.linalg.solve(K, y - net.head.bias[None])
        else:
            kernel = parts[1].head.kernel
        moved = t - theta0 if reparameterized else ravel_pytree(body)[0]
        return net, kernel, jnp.concatenate([moved, kernel.ravel()])

    def residuals(t, c):
        net, kernel, penalized = network(t, c.images, c.labels)
        f = net.features(c.images) @ kernel + net.head.bias[None]
        return jnp.concatenate([(f - c.labels).ravel(), jnp.sqrt(l2) * penalized])

    def inner(t, c):
        return 0.5 * jnp.sum(residuals(t, c) ** 2)

    def outer(t, c):
        net, kernel, _ = network(t, c.images, c.labels)
        f = net.features(images) @ kernel + net.head.bias[None]
        return platt_loss(f, targets, c.log_temperature)

    def adam(gradient, x, rate):
        m = v = 0.0
        for k in range(1, steps + 1):
            g = gradient(x)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            x = x - rate * (m / (1 - 0.9**k)) / (jnp.sqrt(v / (1 - 0.999**k)) + 1e-8)
        return x

    gradient = jax.jit(jax.grad(inner))
    theta = adam(lambda theta: gradient(theta, coreset), theta0, 1e-2)
    if gauss_newton:
        J = jax.jit(jax.jacobian(residuals))(theta, coreset)
        H = J.T @ J + damping * jnp.eye(len(theta))
    else:
        H = jax.jit(jax.hessian(inner))(theta, coreset) + damping * jnp.eye(len(theta))
    assert np.linalg.eigvalsh(H).min() > 0
    g_T = jax.jit(jax.grad(outer))(theta, coreset)
    if name == "adam":
        solution = adam(lambda v: H @ v - g_T, jnp.zeros_like(g_T), 3e-3)
    else:
        solution = jnp.linalg.solve(H, g_T)

    @jax.jit
    def assembled(c):
        implicit = jax.grad(lambda c: jax.grad(inner)(theta, c) @ solution)(c)
        return jax.tree.map(jnp.subtract, jax.grad(outer, argnums=1)(theta, c), implicit)

    expected = assembled(coreset)
    method = (rig if reparameterized else vig)(
        inner=Adam(1e-2, steps),
        solver=make(len(theta)),
        l2_rate=L2_RATE,
        damping=damping,
        gauss_newton=gauss_newton,
        outer_loss=platt_loss,
    )
    got = run(method.hypergradient, setting, key=jr.key(0))
    assert relative(got.gradient, expected) < tolerance
    assert float(got.value) == pytest.approx(float(outer(theta, coreset)), rel=1e-10)
    assert not got.stats["inner_diverged"]


@pytest.mark.parametrize("make", [rcig_paper, rig])
def test_no_inner_steps_leave_the_direct_gradient_of_the_head(setting, make):
    """n_inner = n_H⁻¹ = 0 is the head-only method (paper, section 4.3)."""
    method = make(inner=Adam(steps=0), solver=Adam(steps=0), l2_rate=L2_RATE)
    got = run(method.hypergradient, setting, key=jr.key(0))
    expected = run(head_hypergradient, setting, l2_rate=L2_RATE)
    assert relative(got.gradient, expected.gradient) < 1e-12


def test_the_implicit_gradient_is_clipped_leaf_by_leaf(setting):
    direct, implicit = jnp.array([3.0, 4.0]), jnp.array([30.0, 40.0])
    np.testing.assert_allclose(clip_implicit(direct, implicit), direct)
    np.testing.assert_allclose(clip_implicit(implicit, direct), direct)
    np.testing.assert_allclose(clip_implicit(direct, 0 * implicit), 0 * direct)
    # A large head makes the body's share of the tangent kernel, and so the implicit part, large.
    louder = eqx.tree_at(lambda m: m.head.kernel, setting[0], replace_fn=lambda k: 10 * k)
    setting = (louder, *setting[1:])
    given = {"l2_rate": L2_RATE, "inner": CG, "solver": CG}
    free = run(implicit_hypergradient, setting, **given)
    clipped = run(implicit_hypergradient, setting, **given, clip=True)
    given["solver"] = Adam(steps=0)
    direct = run(implicit_hypergradient, setting, **given)
    expected = clip_implicit(
        direct.gradient, jax.tree.map(jnp.subtract, free.gradient, direct.gradient)
    )
    assert relative(clipped.gradient, jax.tree.map(jnp.add, direct.gradient, expected)) < 1e-9
    assert relative(clipped.gradient, free.gradient) > 1e-3
    solver = lx.Cholesky()
    exact = run(
        rcig(l2_rate=L2_RATE, solver=solver, clip=True).hypergradient, setting, key=jr.key(0)
    )
    assert relative(exact.gradient, clipped.gradient) < 1e-6


def test_tuning_finds_rates_whose_descents_are_monotone(setting):
    method = rcig_paper(l2_rate=L2_RATE)
    tuned = eqx.filter_jit(method.tune)(*setting)

    @eqx.filter_jit
    def stats_of(method):
        return method.hypergradient(*setting, key=jr.key(0)).stats

    stats = stats_of(tuned)
    assert stats["inner_monotone"]
    assert stats["solver_monotone"]
    # Not by being timid: a rate of the search's own start would hardly move.
    for name in ("inner", "solver"):
        rate = lambda m, name=name: getattr(m, name).learning_rate  # noqa: E731
        larger = eqx.tree_at(rate, tuned, replace_fn=lambda r: r / 0.7 * 1.3)
        assert not stats_of(larger)[f"{name}_monotone"]
    largest = eqx.filter_jit(dataclasses.replace(method, below_largest=1.0).tune)(*setting)
    np.testing.assert_allclose(rates(tuned), 0.7 * np.array(rates(largest)), rtol=1e-6)
    with pytest.raises(ValueError, match="no learning rate yet"):
        method.hypergradient(*setting, key=jr.key(0))


def rates(method) -> list[float]:
    return [float(method.inner.learning_rate), float(method.solver.learning_rate)]


def test_the_presets_differ_in_named_values_only():
    paper, code = presets.paper(), presets.authors_code()
    assert paper.method
    assert code.method == dataclasses.replace(
        paper.method,
        clip=True,
        margin=True,
    )
    assert paper.method == rcig_paper(below_largest=1.0)
    assert paper.pool == PoolSchedule(30, 100, 1, 1, 5e-5)
    assert code.pool == dataclasses.replace(paper.pool, max_visit=15)
    late = jnp.asarray(10_000)
    assert float(paper.average(late)) == 1  # the last iterate
    assert float(code.average(late)) == pytest.approx(0.01, rel=1e-5)
    same = ("optimizer", "fold", "batch_size")
    assert all(getattr(paper, name) == getattr(code, name) for name in same)
    assert (paper.fold, paper.batch_size) == (False, 1024)


def test_the_presets_take_other_methods():
    assert presets.paper(rig, damping=0.1).method == rig(damping=0.1, below_largest=1.0)
    assert presets.paper(frepo, l2_rate=1e-3).method == frepo(l2_rate=1e-3)
    assert presets.authors_code(rcig).method == rcig(clip=True, margin=True)
    assert presets.authors_code(rcig, clip=False).method == rcig(margin=True)
    assert presets.authors_code(frepo).method == frepo(margin=True)
    assert presets.authors_code(rig).method == rig(clip=True, margin=True, below_largest=1.0)
    assert presets.authors_code(vig).method == vig(below_largest=1.0)  # its head has no such loss


def test_rates_shrink_after_a_descent_that_diverged(setting):
    good = {"inner_diverged": jnp.asarray(False), "solver_diverged": jnp.asarray(False)}
    bad = {"inner_diverged": jnp.asarray(True), "solver_diverged": jnp.asarray(False)}
    adams: Any = {"inner": Adam(1.0), "solver": Adam(2.0)}
    paper = eqx.filter_jit(rcig_paper(**adams).tune)(*setting)
    assert rates(paper) == [1, 2]
    assert rates(paper.adapt(good)) == pytest.approx([1, 2])
    assert rates(paper.adapt(good).adapt(bad)) == pytest.approx([0.9, 2])
    assert rates(paper.adapt(bad).adapt(bad)) == pytest.approx([0.81, 2])
    halved = eqx.filter_jit(rcig_paper(**adams, shrink=0.5).tune)(*setting)
    assert rates(halved.adapt(bad)) == pytest.approx([0.5, 2])
    untuned = rcig_paper(**adams)  # its rates are the caller's numbers
    assert untuned.adapt(bad) == untuned


def test_a_raised_l2_term_is_that_of_every_part(setting):
    """After a rejected step λ is tenfold; what the head's system has is raised with it."""
    makers: Any = (rcig, frepo, rcig_paper, rig, cig, vig)
    for make in makers:
        raised: Any = raise_l2(make(l2_rate=0.01), jnp.asarray(2), jnp.float64)
        assert float(raised.l2_rate) == pytest.approx(1.0)
        solved = make not in (cig, vig)
        assert raised.head_l2_rate is (raised.l2_rate if solved else None)
    both: Any = raise_l2(
        staged(frepo(l2_rate=0.3), cig(l2_rate=0.1), 5), jnp.asarray(1), jnp.float64
    )
    found = [float(x) for x in (both.first.l2_rate, both.then.l2_rate, both.head_l2_rate)]
    assert found == pytest.approx([3.0, 1.0, 3.0])
    method = cig(inner=CG, solver=Dual(), l2_rate=L2_RATE, damping=0.2)
    by_hand = cig(inner=CG, solver=Dual(), l2_rate=10 * L2_RATE, damping=0.2)
    got, expected = (
        eqx.filter_jit(m.hypergradient)(*setting, key=jr.key(0)).gradient
        for m in (raise_l2(method, jnp.asarray(1), jnp.float64), by_hand)
    )
    assert relative(got, expected) < 1e-9


def test_staged_adapts_the_method_in_use(setting):
    bad = {name: jnp.asarray(True) for name in ("inner_diverged", "solver_diverged")}
    paper = rcig_paper(inner=Adam(1.0), solver=Adam(2.0))
    both = eqx.filter_jit(staged(paper, paper, 2).tune)(*setting)
    for _ in range(3):
        both = both.adapt(bad)
    assert rates(both.first) == pytest.approx([0.81, 1.62])
    assert rates(both.then) == pytest.approx([0.9, 1.8])
    with pytest.raises(ValueError, match="steps is 0"):
        staged(paper, paper, 0)
