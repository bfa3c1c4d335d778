"""RCIG with its inner problem solved exactly, in the dual."""

from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, Scalar

from .._backend import IMAGES_AT_ONCE, full_precision
from .._checks import check_flags
from .._linearize import linearize
from .._losses import SQUARED_ERROR, InnerLoss, OuterLoss, check_quadratic, platt_loss
from .._subsample import partial_vjp
from .._trees import negative
from ..bilevel import Hypergradient
from ..models import count_parameters
from ..operators import NTK
from ..operators._kernel import woodbury
from ..solvers import ConjugateGradient, Dual
from ..solvers._definite import advice
from ..solvers._dual import check_kernel_solver, prepare_kernel
from ._implicit import Implicit
from ._method import (
    AbstractRegularizedMethod,
    History,
    accuracy,
    check_shared,
    fields_of,
    first_short,
    support_vjp,
    weights_of,
)

Solver = lx.AbstractLinearSolver[Any]


class Rcig(AbstractRegularizedMethod):
    """Reparameterized convexified implicit gradients, without truncation.

    The inner problem is a strongly convex quadratic, so RCIG's and CIG's minimum is kernel ridge
    regression with the empirical NTK of `model`. With J the Jacobian of f_lin(X_S), λ = l2_rate·n:

        (J Jᵀ + λI) α = y_S        θ* = Jᵀ α              f_T = J_T θ*
        w = J_Tᵀ ∂L_o/∂f_T         (J Jᵀ + λI) β = J w    μ = w − Jᵀ β
        dL_o/dy_S = β
        dL_o/dX_S = ∂/∂X_S [⟨α, J(X_S) μ⟩ − ⟨β, J(X_S) θ*⟩]     α, β, μ, θ* held fixed

    This equals the direct plus the implicit gradient of the paper's section 3.3 with both loops
    run to convergence; μ/λ is its v. Costs one forward, tangent and transpose pass over the outer
    batch, and over the distilled set the two solves and six passes. Matrix products run in full
    float32 on every backend: a residual says nothing about an operator that was rounded itself.

    **Arguments:**

    - `l2_rate`: λ divided by the number of distilled points (paper, appendix C: 5e-4 at depth 3).
    - `outer_loss`: `outer_loss(predictions, targets, log_temperature)`.
    - `solver`: any lineax solver, with the [`NTK`][rcig_eqx.operators.NTK]: `lineax.Cholesky()` is
      exact, `ConjugateGradient()` is preconditioned by the conjugate kernel. If `None` by size, as
      `choose_dual_solver`.
    - `label_solver`: that for α, which need not be as close; `solver` if `None`.
    - `subset`, `margin`: as in
      [`AbstractRegularizedMethod`][rcig_eqx.methods.AbstractRegularizedMethod].
    - `clip`: limit the implicit part to the direct one's norm, leaf by leaf, as
      `clip_implicit`. The gradient is then not exact, and with
      a `subset` no unbiased estimate.
    - `inner_loss`: a [`SquaredError`][rcig_eqx.SquaredError]; with weights w the system is
      (J Jᵀ + λ diag(w)⁻¹) α = y_S, and nothing else changes.

    The statistics are `accuracy`; `iterations` and `residual` of the solve for β, on which the
    gradient in the inputs depends most, and `inner_iterations` and `inner_residual` of that for α:
    products, 0 for a factorization, and relative residuals; and `converged`, whether both reached
    their tolerance.
    """

    l2_rate: float | Scalar = 5e-4
    outer_loss: OuterLoss = platt_loss
    solver: Solver | None = None
    label_solver: Solver | None = None
    subset: int | None = eqx.field(static=True, default=None)
    clip: bool = eqx.field(static=True, default=False)
    margin: bool = eqx.field(static=True, default=False)
    inner_loss: InnerLoss = SQUARED_ERROR

    def __check_init__(self):
        check_shared(self)
        for name in ("solver", "label_solver"):
            if getattr(self, name) is not None:
                check_kernel_solver(name, getattr(self, name))
        check_flags(clip=self.clip)
        check_quadratic(self.inner_loss, "rcig solves the inner problem")

    @property
    def linear_in_labels(self) -> bool:
        return True

    @property
    def head_l2_rate(self) -> float | Scalar:
        return self.l2_rate

    def advice(self, history: History) -> str:
        if self.solver is None:
            return (
                "Raise the solvers' max_steps, as in rcig(solver=ConjugateGradient(1e-4, 1000), "
                "label_solver=ConjugateGradient(1e-2, 1000)), or pass solver=lineax.Cholesky()."
            )
        return advice(self.solver, first_short(history))

    @full_precision
    def through(self, model, coreset, inputs, targets, /, chosen=None):
        (X_S, y_S), pull_back = support_vjp(coreset)
        solvers = self._solvers(y_S.size, count_parameters(model))
        if self.clip:  # the exact parts one by one
            return self._by_parts(*solvers).through(model, coreset, inputs, targets, chosen)
        weights = weights_of(self.inner_loss, coreset)
        K = NTK(model, X_S, self.l2_rate * len(y_S), weights=weights)
        for_beta, for_alpha = prepare_kernel(K, *solvers)

        alpha, alpha_stats = for_alpha.solve(y_S)
        theta = K.cotangent(alpha)
        at_T = linearize(model, inputs)
        f_T = at_T.jvp(theta)
        value, (f_bar, temperature_bar) = jax.value_and_grad(
            lambda f, t: self.outer_loss(f, targets, t), argnums=(0, 1)
        )(f_T, coreset.log_temperature)
        mu, beta, stats = woodbury(K, at_T.vjp(f_bar), for_beta.solve)

        def products(X: Array) -> tuple[Array, Array]:
            at = linearize(model, X)
            return at.jvp(mu), at.jvp(theta)

        _, to_inputs = partial_vjp(products, X_S, chosen, held=IMAGES_AT_ONCE)
        gradient = pull_back(to_inputs((alpha, negative(beta))), beta, temperature_bar)
        said = {
            "accuracy": accuracy(f_T, targets),
            "iterations": stats["iterations"],
            "residual": stats["residual"],
            "inner_iterations": alpha_stats["iterations"],
            "inner_residual": alpha_stats["residual"],
            "converged": alpha_stats["converged"] & stats["converged"],
        }
        return Hypergradient(value, gradient, said)

    def _solvers(self, *size: int) -> tuple[Solver, Solver]:
        """Those for β and α: as given, or by size."""
        labels = self.solver if self.label_solver is None else self.label_solver
        return (
            choose_dual_solver(*size) if self.solver is None else self.solver,
            choose_dual_solver(*size, labels=True) if labels is None else labels,
        )

    def _by_parts(self, solver: Solver, label_solver: Solver) -> Implicit:
        return Implicit(
            linearized=True,
            reparameterized=True,
            inner=Dual(label_solver),
            solver=Dual(solver),
            l2_rate=self.l2_rate,
            inner_loss=self.inner_loss,
            outer_loss=self.outer_loss,
            clip=True,
        )


@fields_of(Rcig)
def rcig(**options: Any) -> Rcig:
    """An [`Rcig`][rcig_eqx.methods.Rcig]; `options` are its fields."""
    return Rcig(**options)


def choose_dual_solver(unknowns: int, parameters: int, *, labels: bool = False) -> Solver:
    """The solver of the dual system for so many unknowns and parameters.

    Unknowns are inputs × classes, mirrors counted. Up to 200, conjugate gradients need so few
    products that forming the matrix does not pay; up to 2,000 they need many, and Cholesky is
    faster and exact. Where the Jacobian has more than 4e8 numbers, forming the matrix takes too
    many passes, and conjugate gradients are left, to a residual of 1e-4 for β, on which the
    hypergradient depends more, and with `labels` of 1e-2 for α. At width 128 that is from 257
    unknowns on. Measured at 100 and 1,000 unknowns (`benchmarks/step.py`), 5,000 and 20,000
    (`benchmarks/tolerance.py`), at width 32 and an outer batch of 64; between and beyond, by
    arithmetic.
    """
    if unknowns <= 200:
        return ConjugateGradient()
    if unknowns <= 2000 and unknowns * parameters <= 4e8:
        return lx.Cholesky()
    return ConjugateGradient(rtol=1e-2 if labels else 1e-4, max_steps=300)
