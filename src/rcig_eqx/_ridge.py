"""The kernel ridge head, through lineax."""

import jax
import jax.numpy as jnp
import lineax as lx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from ._backend import full_precision


@full_precision
def kernel_ridge(
    K_ss: Float[Array, "n n"],
    labels: Float[Array, "n classes"],
    l2: float | Float[Array, "*n"],
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n classes"]:
    """The dual coefficients (K_ss + λI)⁻¹ y, by one Cholesky factorization (paper, equation 3).

    **Arguments:**

    - `K_ss`: a positive semidefinite kernel matrix `[n n]`.
    - `labels`: `[n classes]`; for a displaced body, the labels less its offset (equation 4).
    - `l2`: λ > 0, one number or one for each point.
    - `dtype`: the precision of the solve; the result has the labels' dtype. The paper solves in
      float64 for MNIST and Fashion-MNIST at 50 images per class (appendix C).

    Not finite where K_ss or the labels are not. Raises `ValueError` if float64 is asked for while
    JAX has it switched off.
    """
    dtype = solve_dtype(dtype, labels)
    ridge = jnp.broadcast_to(jnp.asarray(l2, dtype), (len(K_ss),))
    K = K_ss.astype(dtype) + jnp.diag(ridge)
    solver = lx.Cholesky()
    operator = lx.MatrixLinearOperator(jax.lax.stop_gradient(K), lx.positive_semidefinite_tag)
    factor = solver.init(operator, {})

    def solve(_, columns: Array) -> Array:
        def one(column: Array) -> Array:
            return lx.linear_solve(operator, column, solver, state=factor, throw=False).value

        return jax.vmap(one, 1, 1)(columns)

    # Its derivatives are solves with the same factor. Those of lineax factor anew, and raise.
    solution = jax.lax.custom_linear_solve(
        lambda x: K @ x, labels.astype(dtype), solve, symmetric=True
    )
    return solution.astype(labels.dtype)


@full_precision
def ridge_head(
    features: Float[Array, "n features"],
    labels: Float[Array, "n classes"],
    l2: float | Scalar,
    *,
    weights: Float[Array, "n classes"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "features classes"]:
    """The head θ_F* = hᵀ (h hᵀ + λI)⁻¹ y that minimizes the inner loss (paper, equation 3).

    `weights` are those of a weighted inner loss, with which every class has a system of its own,
    h hᵀ + λ diag(w)⁻¹. `dtype` is the precision of the solve and of the products around it, as
    rounding h hᵀ may leave it indefinite; the result has the labels' dtype.
    """
    dtype = solve_dtype(dtype, labels)
    h, y = features.astype(dtype), labels.astype(dtype)
    K_ss = h @ h.T
    if weights is None:
        return (h.T @ kernel_ridge(K_ss, y, l2)).astype(labels.dtype)

    def one(y: Array, ridge: Array) -> Array:
        return kernel_ridge(K_ss, y[:, None], ridge)[:, 0]

    alpha = jax.vmap(one, 1, 1)(y, jnp.asarray(l2, dtype) / weights.astype(dtype))
    return (h.T @ alpha).astype(labels.dtype)


def solve_dtype(dtype: DTypeLike | None, like: Array) -> jnp.dtype:
    """The dtype of a solve: the array's own, or the one asked for, if JAX can represent it."""
    check_dtype(dtype)
    return like.dtype if dtype is None else jnp.dtype(dtype)


def check_dtype(dtype: DTypeLike | None) -> None:
    """Raise `ValueError` for one that no system is solved in, or JAX cannot represent as set up."""
    if dtype is None:
        return
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype is {dtype!r}: pass jnp.float32 or jnp.float64.") from error
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype is {dtype.name}: a solve is in jnp.float32 or jnp.float64.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"A solve in {dtype.name} needs 64-bit numbers in JAX. Switch them on first with "
            "jax.config.update('jax_enable_x64', True); parameters and images stay as they are."
        )
