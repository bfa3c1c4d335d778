"""RCIG with its inner problem solved exactly, in the dual."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from .._backend import IMAGES_AT_ONCE, full_precision
from .._checks import check_flags
from .._coreset import Coreset
from .._hypergradient import Hypergradient
from .._linearize import linearize
from .._losses import SQUARED_ERROR, InnerLoss, platt_loss
from .._subsample import check_subset, choose, partial_vjp
from ..models import AbstractNetwork, count_parameters
from ..solvers import AbstractDualSolver, DualCG, DualCholesky
from ._implicit import implicit_hypergradient
from ._method import (
    AbstractMethod,
    OuterLoss,
    accuracy,
    check_l2_rate,
    check_quadratic,
    over_support,
    subtract_margin,
)


@full_precision
def exact_hypergradient(
    model: AbstractNetwork,
    coreset: Coreset,
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b classes"],
    *,
    l2_rate: float | Scalar = 5e-4,
    inner_loss: InnerLoss = SQUARED_ERROR,
    outer_loss: OuterLoss = platt_loss,
    solver: AbstractDualSolver | None = None,
    chosen: Int[Array, " m"] | None = None,
) -> Hypergradient:
    """The hypergradient of the linearised inner problem, without truncation.

    The inner problem is a strongly convex quadratic, so RCIG's and CIG's minimum is kernel ridge
    regression with the empirical NTK of `model`. With J the Jacobian of f_lin(X_S), λ = l2_rate·n:

        (J Jᵀ + λI) α = y_S        θ* = Jᵀ α              f_T = J_T θ*
        w = J_Tᵀ ∂L_o/∂f_T         (J Jᵀ + λI) β = J w    μ = w − Jᵀ β
        dL_o/dy_S = β
        dL_o/dX_S = ∂/∂X_S [⟨α, J(X_S) μ⟩ − ⟨β, J(X_S) θ*⟩]     α, β, μ, θ* held fixed

    This equals the direct plus the implicit gradient of the paper's section 3.3 with both loops
    run to convergence; μ/λ is its v. Costs one forward, tangent and transpose pass over the outer
    batch, and over the distilled set the two solves and six passes.

    **Arguments:**

    - `model`: the network θ⁰ to linearise around.
    - `coreset`: ψ; mirrored first if it flips.
    - `images`, `targets`: the outer batch, preprocessed, and one-hot labels.
    - `l2_rate`: λ divided by the number of distilled points (paper, appendix C: 5e-4 at depth 3).
    - `inner_loss`: a [`SquaredError`][rcig_eqx.SquaredError]; with weights w the system is
      (J Jᵀ + λ diag(w)⁻¹) α = y_S, and nothing else changes.
    - `outer_loss`: `outer_loss(predictions, targets, log_temperature)`.
    - `solver`: for the dual system; by size if `None`, as
      [`choose_dual_solver`][rcig_eqx.methods.choose_dual_solver].
    - `chosen`: indices of the distilled images, mirrored ones counted, that the last backward
      pass goes through. If random, the gradient in the images is an unbiased estimate of the
      exact one; that in the labels and log τ stays exact. All images if `None`.

    **Returns:** a `Hypergradient` whose `stats` hold `accuracy`; `iterations` and `residual` of
    the solve for β, on which the gradient in the images depends most, and `inner_iterations` and
    `inner_residual` of that for α: products, 0 for a factorisation, and relative residuals; and
    `converged`, whether both reached their tolerance.

    Matrix products run in full float32 on every backend: a residual says nothing about an
    operator that was rounded itself.
    """
    check_dual(solver)
    loss_S = check_quadratic(inner_loss, "exact_hypergradient solves the inner problem")
    weights = over_support(loss_S, coreset).weights
    (X_S, y_S), mirror_transpose = jax.vjp(lambda c: c.support(), coreset)
    if solver is None:
        solver = choose_dual_solver(y_S.size, count_parameters(model))
    l2 = l2_rate * len(y_S)
    at_S = linearize(model, X_S)
    system = solver.prepare(model, X_S, at_S, l2, weights)

    alpha = system.solve(y_S, labels=True)
    theta = at_S.vjp(alpha.value)
    at_T = linearize(model, images)
    f_T = at_T.jvp(theta)
    value, (f_grad, temperature_grad) = jax.value_and_grad(
        lambda f, t: outer_loss(f, targets, t), argnums=(0, 1)
    )(f_T, coreset.log_temperature)

    w = at_T.vjp(f_grad)
    beta = system.solve(at_S.jvp(w))
    mu = jax.tree.map(jnp.subtract, w, at_S.vjp(beta.value))

    def products(X: Array) -> tuple[Array, Array]:
        at = linearize(model, X)
        return at.jvp(mu), at.jvp(theta)

    _, to_images = partial_vjp(products, X_S, chosen, held=IMAGES_AT_ONCE)
    (gradient,) = mirror_transpose((to_images((alpha.value, -beta.value)), beta.value))
    gradient = eqx.tree_at(lambda c: c.log_temperature, gradient, temperature_grad)
    stats = {
        "accuracy": accuracy(f_T, targets),
        "iterations": beta.num_steps,
        "residual": beta.residual,
        "inner_iterations": alpha.num_steps,
        "inner_residual": alpha.residual,
        "converged": alpha.converged & beta.converged,
    }
    return Hypergradient(value, gradient, stats)


def choose_dual_solver(unknowns: int, parameters: int) -> AbstractDualSolver:
    """The dual solver for so many unknowns (images × classes, mirrors counted) and parameters.

    Up to 200 unknowns, conjugate gradients need so few products that forming the matrix does not
    pay; up to 2,000 they need many, and Cholesky is faster and exact. Where the Jacobian has more
    than 4e8 numbers, forming the matrix takes too many passes, and conjugate gradients are left, to
    a residual of 1e-2 for α and 1e-4 for β, on which the hypergradient depends more. At width 128
    that is from 257 unknowns on. Measured at 100 and 1,000 unknowns (`benchmarks/step.py`), 5,000
    and 20,000 (`benchmarks/tolerance.py`), at width 32 and an outer batch of 64; between and
    beyond, by arithmetic.
    """
    if unknowns <= 200:
        return DualCG()
    if unknowns <= 2000 and unknowns * parameters <= 4e8:
        return DualCholesky()
    return DualCG(rtol=1e-4, max_steps=300, label_rtol=1e-2)


def check_dual(solver: AbstractDualSolver | None) -> None:
    """Raise `ValueError` for a solver of another system than the dual one."""
    if not isinstance(solver, AbstractDualSolver | None):
        raise ValueError(
            f"solver is {solver!r}, but the exact method solves in the dual: pass DualCG() or "
            "DualCholesky(), or take methods.rcig_paper(inner=..., solver=...), whose solvers "
            "may be any."
        )


class rcig(AbstractMethod):
    """Reparameterised convexified implicit gradients, solved exactly.

    What `distill` does by default once a head-only start has taken it most of the way.

    **Arguments:** `l2_rate`, `inner_loss`, `outer_loss` and `solver` as in
    [`exact_hypergradient`][rcig_eqx.exact_hypergradient], and

    - `subset`: distilled images, mirrored ones counted, that a step's last backward pass goes
      through, drawn anew each time; all if `None` or if there are no more. The solves and the
      forward pass take all.
    - `clip`: limit the implicit part to the direct one's norm, leaf by leaf, as
      [`clip_implicit`][rcig_eqx.methods.clip_implicit]. The gradient is then not exact, and with
      a `subset` no unbiased estimate.
    - `margin`: subtract the label margin from the outer loss, as the authors' code does.
    """

    l2_rate: float = 5e-4
    outer_loss: OuterLoss = platt_loss
    solver: AbstractDualSolver | None = None
    subset: int | None = eqx.field(static=True, default=None)
    clip: bool = eqx.field(static=True, default=False)
    margin: bool = eqx.field(static=True, default=False)
    inner_loss: InnerLoss = SQUARED_ERROR

    def __check_init__(self):
        check_l2_rate(self.l2_rate)
        check_subset(self.subset)
        check_dual(self.solver)
        check_flags(clip=self.clip, margin=self.margin)
        check_quadratic(self.inner_loss, "rcig solves the inner problem")

    def hypergradient(self, model, coreset, images, targets, *, key):
        n, classes = coreset.support()[1].shape
        problem = (model, coreset, images, targets)
        given = {
            "l2_rate": self.l2_rate,
            "inner_loss": self.inner_loss,
            "outer_loss": self.outer_loss,
            "solver": self.solver or choose_dual_solver(n * classes, count_parameters(model)),
            "chosen": choose(n, self.subset, key),
        }
        if self.clip:
            result = implicit_hypergradient(*problem, inner=given["solver"], clip=True, **given)
        else:
            result = exact_hypergradient(*problem, **given)
        return subtract_margin(result, coreset) if self.margin else result
