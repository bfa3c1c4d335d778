"""What both ways into a bilevel problem share: inner losses, checks, and the adjoint solve."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Scalar

from ._checks import check_number
from ._parameters import as_arrays, check_like
from ._types import PyTree
from .solvers import (
    AbstractDualSolver,
    Adam,
    DualCG,
    DualCholesky,
    Neumann,
    Nystrom,
    gauss_newton_operator,
    hessian_operator,
)
from .solvers._curvature import linearized
from .solvers._definite import norm, residual_of
from .solvers._dual import dual_system

# A scalar function of (inner_params, outer_params, *args); an outer one may return (loss, aux).
Loss = Callable[..., Any]
Solver = lx.AbstractLinearSolver[Any] | AbstractDualSolver
Preconditioner = lx.AbstractLinearOperator | Callable[[PyTree], PyTree]

_WARM = (
    "A hypergradient with a warm_start has no derivatives, since a truncated solve from it is not "
    "linear: leave warm_start out where you differentiate it."
)
_DENSE = (lx.AutoLinearSolver, lx.Cholesky, lx.LU, lx.QR, lx.SVD, lx.Diagonal)
_DIRECT = (*_DENSE, DualCholesky, Nystrom)
_UNPRECONDITIONED = (*_DENSE, Adam, Neumann, Nystrom, AbstractDualSolver)


class RESULTS(eqx.Enumeration):
    """How an adjoint solve ended. Print one, or index with it, for its words."""

    successful = ""
    diverged = (
        "The solve for the adjoint diverged. Away from a minimum of the inner loss its Hessian can "
        "be indefinite: minimise further, add damping, or pass GaussNewton(outputs, loss) as the "
        "inner loss. Lower learning_rate of Adam, step_size of Neumann, rtol of DualCG; raise rank "
        "of Nystrom."
    )


class GaussNewton(eqx.Module):
    """The inner loss ℓ(f(θ, ψ), ψ), with Jᵀ (∂²ℓ/∂f²) J in place of its Hessian in θ.

    Positive semidefinite wherever θ is, for an ℓ convex in f; equal to the Hessian where f is
    linear in θ. Elsewhere the hypergradient is an approximation.

    - `outputs`: f, a function of `(inner_params, outer_params, *args)`. A penalty on θ counts
      too: return θ beside the network's outputs.
    - `loss`: ℓ, a scalar function of `(outputs, outer_params, *args)`.
    """

    outputs: Callable[..., PyTree]
    loss: Loss

    def __call__(self, inner_params: PyTree, outer_params: PyTree, *args: Any) -> Scalar:
        """The inner loss."""
        return self.loss(self.outputs(inner_params, outer_params, *args), outer_params, *args)


class LeastSquares(eqx.Module):
    """The inner loss ½‖r(θ, ψ)‖² + ½ ⟨λ(ψ), θ²⟩, which `DualCholesky` and `DualCG` solve exactly.

    Its curvature is JᵀJ + diag(λ): the Hessian where r is linear in θ, else the Gauss–Newton
    matrix. In the dual v = D⁻¹(g − Jᵀβ) with (J D⁻¹ Jᵀ + I) β = J D⁻¹ g and D = λ + damping, by
    the Woodbury identity: one unknown a residual, whatever the size of θ.

    - `residuals`: r, a function of `(inner_params, outer_params, *args)`.
    - `l2`: λ > 0, a function of `(outer_params, *args)`: one number, or a pytree of arrays that is
      a prefix of the inner parameters', each of its parameter's shape or a number.
    """

    residuals: Callable[..., PyTree]
    l2: Callable[..., PyTree]

    def __check_init__(self) -> None:
        for name in ("residuals", "l2"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: pass a function, such as "
                    "l2=lambda outer_params: 0.1 for a fixed λ."
                )

    def __call__(self, inner_params: PyTree, outer_params: PyTree, *args: Any) -> Scalar:
        """The inner loss."""
        theta = eqx.filter(as_arrays(inner_params), eqx.is_inexact_array)
        weights = self.weights(theta, outer_params, *args)
        penalties = jax.tree.map(lambda d, x: jnp.sum(d * x**2), weights, theta)
        squares = half_square(self.residuals(inner_params, outer_params, *args))
        return squares + 0.5 * jax.tree.reduce(jnp.add, penalties)

    def weights(self, theta: PyTree, outer_params: PyTree, *args: Any) -> PyTree:
        """λ as a pytree shaped like θ; `ValueError` for one that does not fit or is not > 0."""
        l2 = self.l2(outer_params, *args)
        try:
            jax.tree.map(lambda d, part: None, l2, theta)
        except ValueError as error:
            raise ValueError(
                f"l2 returns {jax.tree.structure(l2)}, no prefix of the inner parameters' "
                f"{jax.tree.structure(theta)}: return one number, or a pytree shaped like them."
            ) from error
        return jax.tree.map(lambda d, part: jax.tree.map(_spread(d), part), l2, theta)


def _spread(d: Any) -> Callable[[Array], Array]:
    """λ over one leaf of θ."""
    kind = getattr(d, "dtype", np.result_type(d) if isinstance(d, int | float) else None)
    if kind is None or not (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    ):
        raise ValueError(f"l2 returns {d!r}: return real numbers or arrays of them.")
    if not isinstance(d, Tracer) and not (np.asarray(d) > 0).all():
        raise ValueError(
            f"l2 returns {d}: make it positive, such as exp(log_l2) of what is learned."
        )

    def over(x: Array) -> Array:
        if np.shape(d) not in ((), x.shape):
            raise ValueError(
                f"l2 returns {list(np.shape(d))} for parameters {list(x.shape)}: return a number "
                "or an array of that shape."
            )
        return jnp.broadcast_to(d, x.shape).astype(x.dtype)

    return over


def half_square(tree: PyTree) -> Scalar:
    """½‖r‖² over all leaves."""
    return 0.5 * jax.tree.reduce(jnp.add, jax.tree.map(lambda r: jnp.sum(r**2), tree))


class InnerMinimum(eqx.Module):
    """An inner loss at a point θ, as a function of its differentiated half alone."""

    inner_loss: Loss
    frozen: PyTree
    outer_params: PyTree
    args: tuple[Any, ...]

    def call(self, function: Callable[..., Any], theta: PyTree) -> Any:
        # Equinox's State may be used once: every call gets a copy.
        args = jax.tree.map(lambda x: x, self.args)
        return function(eqx.combine(theta, self.frozen), self.outer_params, *args)

    def loss(self, theta: PyTree) -> Any:
        return self.call(self.inner_loss, theta)

    def curvature(self, theta: PyTree, damping: float | Scalar) -> lx.FunctionLinearOperator:
        """The Hessian in θ, or what the inner loss has in its place, and the damping."""
        loss = self.inner_loss
        if isinstance(loss, GaussNewton):
            convex = lambda f: loss.loss(f, self.outer_params, *self.args)  # noqa: E731
            outputs = lambda theta: self.call(loss.outputs, theta)  # noqa: E731
            return gauss_newton_operator(outputs, convex, theta, damping=damping)
        if isinstance(loss, LeastSquares):
            residuals = lambda theta: self.call(loss.residuals, theta)  # noqa: E731
            squares = gauss_newton_operator(residuals, half_square, theta)
            d = self.diagonal(theta, damping)
            return lx.FunctionLinearOperator(
                lambda v: jax.tree.map(lambda h, d, x: h + d * x, squares.mv(v), d, v),
                squares.in_structure(),
                lx.positive_semidefinite_tag,
            )
        return hessian_operator(self.loss, theta, damping=damping)

    def diagonal(self, theta: PyTree, damping: float | Scalar) -> PyTree:
        """λ + damping of a `LeastSquares`."""
        assert isinstance(self.inner_loss, LeastSquares)
        weights = self.inner_loss.weights(theta, self.outer_params, *self.args)
        return jax.tree.map(lambda d: d + jnp.asarray(damping, d.dtype), weights)

    def dual(
        self, theta: PyTree, g: PyTree, solver: AbstractDualSolver, damping: float | Scalar
    ) -> lx.Solution:
        """v of a `LeastSquares` by the system of as many unknowns as residuals."""
        assert isinstance(self.inner_loss, LeastSquares)
        residuals = self.inner_loss.residuals
        r, tangent = linearized(lambda theta: self.call(residuals, theta), theta)
        transpose = jax.linear_transpose(tangent, theta)
        d = self.diagonal(theta, damping)
        _, unravel = ravel_pytree(r)

        def forward(v: PyTree) -> Float[Array, " residuals"]:
            """J D⁻¹ v."""
            return ravel_pytree(tangent(jax.tree.map(jnp.divide, v, d)))[0]

        def backward(u: Float[Array, " residuals"]) -> PyTree:
            """Jᵀ u."""
            (v,) = transpose(unravel(u))
            return v

        b = forward(g)
        beta = dual_system(solver, lambda u: u + forward(backward(u)), b).solve(b[:, None])
        rest = jax.tree.map(jnp.subtract, g, backward(beta.value[:, 0]))
        # The right-hand side's tangent and v's transpose pass are one product between them.
        rows = beta.products if isinstance(solver, DualCG) else jnp.asarray(b.size, jnp.int32)
        stats = {"num_steps": beta.num_steps, "products": rows + 1}
        positive = jnp.all(jnp.stack([jnp.all(x > 0) for x in jax.tree.leaves(d)]))
        result = lx.RESULTS.where(positive, beta.result, lx.RESULTS.breakdown)
        return lx.Solution(jax.tree.map(jnp.divide, rest, d), result, stats, None)


def solve_adjoint(
    at: InnerMinimum,
    theta: PyTree,
    g: PyTree,
    *,
    solver: Solver,
    damping: float | Scalar,
    options: dict[str, Any],
    strict: bool = False,
    throw: bool = False,
) -> tuple[PyTree, dict[str, Array]]:
    """v = (H + damping)⁻¹ g and its statistics, differentiable any number of times.

    Derivatives are solves with the same solver, which lineax's own would not be for operators
    without a transpose rule, and never raise. `strict` makes a v that diverged NaN.

    With a start `y0` there are no derivatives: a truncated solve that starts elsewhere than at zero
    is not linear in its right-hand side, and they would be wrong without a word.
    """
    warm = "y0" in options and not isinstance(solver, _DIRECT)

    def solve(product: Callable[[PyTree], PyTree], b: PyTree) -> tuple[PyTree, dict[str, Array]]:
        structure = jax.eval_shape(lambda: b)
        operator = lx.FunctionLinearOperator(product, structure, lx.positive_semidefinite_tag)
        if isinstance(solver, AbstractDualSolver):
            solution = at.dual(theta, b, solver, damping)
        else:
            solution = lx.linear_solve(operator, b, solver, options=options, throw=False)
        v, stats = solution.value, _stats(solver, solution, operator, b, warm)
        if strict:
            v = jax.tree.map(lambda x: jnp.where(stats["diverged"], jnp.nan, x), v)
        if throw:
            v = outcome(stats["diverged"]).error_if(v, stats["diverged"])
        return v, stats

    operator = at.curvature(theta, damping)
    if warm:
        v, stats = solve(operator.mv, g)
        return eqxi.nondifferentiable(v, msg=_WARM), stats
    return jax.lax.custom_linear_solve(operator.mv, g, solve, symmetric=True, has_aux=True)


def outcome(diverged: Array) -> RESULTS:
    """The result code of an adjoint solve."""
    return RESULTS.where(diverged, RESULTS.diverged, RESULTS.successful)


def solve_stats(solution: lx.Solution) -> dict[str, Array]:
    """`iterations`, `residual` and `converged` of a lineax solution, where it has them."""
    stats = {"converged": jnp.asarray(solution.result == lx.RESULTS.successful)}
    for name, given in (("iterations", "num_steps"), ("residual", "residual")):
        if solution.stats.get(given) is not None:
            stats[name] = jnp.asarray(solution.stats[given])
    return stats


def _stats(
    solver: Solver,
    solution: lx.Solution,
    operator: lx.AbstractLinearOperator,
    g: PyTree,
    warm: bool,
) -> dict[str, Array]:
    """What an adjoint solve cost and how it went, in the same words for every solver."""
    given, result, v = solution.stats, solution.result, solution.value
    stats = solve_stats(solution)
    steps = given.get("num_steps", 0)
    if isinstance(solver, _DENSE):
        products = sum(leaf.size for leaf in jax.tree.leaves(g))
    else:  # of lineax's own iterations it is the least they may have taken
        products = given.get("products", steps)
    if "residual" not in stats:
        stats["residual"] = residual_of(operator, v, g)
        products = products + 1
    truncated = result == lx.RESULTS.max_steps_reached
    ended = (result == lx.RESULTS.successful) | (result == lx.RESULTS.stagnation)
    ended = ended & (stats["residual"] <= 1)  # v = 0 has 1
    gone = ~(truncated | ended) | ~jnp.isfinite(norm(v)) | given.get("diverged", False)
    if isinstance(solver, AbstractDualSolver):  # its own account is of another system
        gone = gone | (stats["residual"] > 1)
    return stats | {
        "iterations": jnp.asarray(steps, jnp.int32),
        "products": jnp.asarray(products, jnp.int32),
        "converged": stats["converged"] & ~gone,
        "diverged": gone,
    }


def check_solver(
    solver: Solver,
    inner_loss: Loss,
    damping: float | Scalar,
    preconditioner: Preconditioner | None,
    warm_start: PyTree = None,
) -> None:
    """Raise `ValueError` for a solver that does not fit the problem."""
    if not isinstance(solver, lx.AbstractLinearSolver | AbstractDualSolver):
        raise ValueError(
            f"solver is {solver!r}: pass a value of rcig_eqx.solvers or lineax, such as "
            "rcig_eqx.solvers.ConjugateGradient()."
        )
    if isinstance(solver, Adam):
        solver.rate()
    if isinstance(solver, AbstractDualSolver) and not isinstance(inner_loss, LeastSquares):
        raise ValueError(
            f"solver is {type(solver).__name__}, which needs to know that the inner loss is least "
            "squares: pass LeastSquares(residuals, l2) as inner_loss, or another solver such as "
            "ConjugateGradient()."
        )
    check_number("damping", damping, lambda d: d >= 0, "a number of at least 0")
    if preconditioner is not None and isinstance(solver, _UNPRECONDITIONED):
        raise ValueError(
            f"solver is {type(solver).__name__}, which takes no preconditioner: leave it out, or "
            "pass ConjugateGradient()."
        )
    if warm_start is not None and isinstance(solver, DualCG):
        raise ValueError(
            "solver is DualCG, whose unknowns are the residuals': it has no use for a warm_start "
            "of θ's. Leave it out, or pass ConjugateGradient()."
        )


def solver_options(
    preconditioner: Preconditioner | None, warm_start: PyTree, theta: PyTree
) -> dict[str, Any]:
    """Options for lineax; no derivative flows through them."""
    options: dict[str, Any] = {}
    if preconditioner is not None:
        is_operator = isinstance(preconditioner, lx.AbstractLinearOperator)
        product = preconditioner.mv if is_operator else preconditioner
        fixed = jax.lax.stop_gradient
        options["preconditioner"] = lx.FunctionLinearOperator(
            lambda v: fixed(product(fixed(v))),
            jax.eval_shape(lambda: theta),
            lx.positive_semidefinite_tag,
        )
    if warm_start is not None:
        check_like("warm_start", warm_start, theta)
        options["y0"] = jax.lax.stop_gradient(warm_start)
    return options
