"""Low-rank approximations of a positive definite operator from a few products."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._checks import check_counts, check_number
from .._types import PyTree
from ._definite import AbstractDefiniteSolver, check_definite, residual_of


def nystrom_approximation(
    operator: lx.AbstractLinearOperator, rank: int, shift: float | Scalar, *, key: PRNGKeyArray
) -> tuple[Float[Array, "numbers rank"], Float[Array, " rank"]]:
    """Eigenvectors U and eigenvalues s, H − shift·I ≈ U diag(s) Uᵀ, from `rank` products.

    The randomised Nyström approximation with the stabilising shift of Frangella, Tropp and Udell
    (2021, algorithm 2.1), but for the eigenvalues of their core in place of its Cholesky factor,
    which rounding leaves none of where `rank` is more than H − shift·I has. Exact where it has no
    higher rank. `shift` must not exceed the smallest eigenvalue of H: for an inner loss with an L2
    term, its λ.
    """
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    flat, unravel = ravel_pytree(zero)
    test, _ = jnp.linalg.qr(jr.normal(key, (flat.size, rank), flat.dtype))

    def product(x: Array) -> Array:
        return ravel_pytree(operator.mv(unravel(x)))[0] - jnp.asarray(shift, x.dtype) * x

    Y = jax.lax.map(product, test.T).T
    nu = jnp.finfo(flat.dtype).eps * jnp.linalg.norm(Y)
    Y = Y + nu * test
    core = test.T @ Y
    spectrum, V = jnp.linalg.eigh((core + core.T) / 2)
    known = spectrum > nu  # the rest is rounding
    scale = jnp.where(known, 1 / jnp.sqrt(jnp.where(known, spectrum, 1)), 0)
    B = Y @ (V * scale[None])
    U, singular, _ = jnp.linalg.svd(B, full_matrices=False)
    return U, jnp.maximum(singular**2 - nu, 0)


class Nystrom(AbstractDefiniteSolver):
    """(A + λI)⁻¹g with A = H − λI replaced by a randomised Nyström approximation of low rank.

    Direct: `rank` products for the approximation, one more for the residual, none for further
    right-hand sides (Hataya and Yamada, 2023, on hypergradients). Exact where A has rank at most
    `rank`, as the linearised inner problem's JᵀJ has with n·C, but for the rounding of A, which is
    divided by λ: in float32 that can be all of it. A solution that leaves more than v = 0 would, a
    residual above 1, is reported as `RESULTS.breakdown`.

    **Arguments:**

    - `rank`: products spent, and vectors of the parameters' size kept.
    - `regularization`: λ, at most the smallest eigenvalue of H. `None` leaves it to a method, which
      knows that of its inner problem, also where it has raised it after a rejected step.
    - `seed`: of the random test vectors.

    The statistics are `num_steps`, `max_steps` and `residual`, ‖g − Hv‖/‖g‖.
    """

    rank: int = eqx.field(static=True)
    regularization: float | Scalar | None = None
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        check_counts(rank=self.rank)
        check_number(
            "regularization", self.regularization, lambda r: r is None or r > 0, "positive, or None"
        )

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> PyTree:
        del options
        if self.regularization is None:
            raise ValueError(
                "Nystrom has no regularization: give it λ, as in Nystrom(20, 0.1); the methods of "
                "distill know theirs."
            )
        size = operator.in_size()
        if self.rank > size:
            raise ValueError(f"rank is {self.rank}, but the operator has only {size} rows.")
        key = jr.key(self.seed)
        factors = nystrom_approximation(
            check_definite(operator), self.rank, self.regularization, key=key
        )
        return operator, factors

    def compute(
        self, state: PyTree, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        del options
        operator, (U, eigenvalues) = state
        g, unravel = ravel_pytree(vector)
        regularization = jnp.asarray(self.regularization, g.dtype)
        inside = U.T @ g
        scale = 1 / (eigenvalues + regularization) - 1 / regularization
        v = unravel(g / regularization + U @ (scale * inside))
        residual = residual_of(operator, v, vector)
        result = lx.RESULTS.where(residual <= 1, lx.RESULTS.successful, lx.RESULTS.breakdown)
        steps = jnp.asarray(self.rank + 1, jnp.int32)
        stats = {"num_steps": steps, "max_steps": self.rank + 1, "residual": residual}
        return v, result, stats
