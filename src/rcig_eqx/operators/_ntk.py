"""The empirical neural tangent kernel of a network, the dual of its linearized inner problem."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import lineax as lx
from jaxtyping import Array, Float, Scalar

from .._linearize import Linearization, linearize
from .._types import PyTree
from ..models import AbstractNetwork
from ._gram import tangent_gram
from ._kernel import AbstractKernel


class NTK(AbstractKernel):
    """J Jᵀ + λ W⁻¹ on arrays `[n classes]`, J the Jacobian of a network at n inputs.

    The linearized inner problem is one strongly convex quadratic. Its minimum is kernel ridge
    regression with the finite-width empirical NTK at the network's present parameters:
    (J Jᵀ + λI) α = y_S and θ* = Jᵀ α. There is one unknown for each input and class, whatever the
    number of parameters. A product is one transpose and one tangent pass.

    **Arguments:**

    - `model`: the network, at its present parameters.
    - `inputs`: `[n *shape]`.
    - `l2`: λ > 0.
    - `weights`: W > 0 `[n classes]`, those of a weighted inner loss; all 1 if `None`.
    - `head_weight`: what the head's part of J Jᵀ is multiplied by, 1 if `None`: λ/λ_F where its
      parameters have another L2 weight λ_F.
    - `linearization`: that of `model` at `inputs`, if it is there already.

    The preconditioner is the inverse of the kernel with the body left out, the conjugate kernel:
    (h hᵀ + λI)⁻¹ ⊗ I_C. It takes one n × n Cholesky factorization; one for each class with
    weights. The matrix costs `classes` transpose passes over the inputs (more where a large layer
    is split) and ½ (nC)² P multiply-adds for P body parameters.
    """

    model: AbstractNetwork
    inputs: Float[Array, "n *shape"]
    l2: float | Scalar
    weights: Float[Array, "n classes"] | None
    head_weight: float | Scalar | None
    features: Float[Array, "n features"]
    jacobian: Callable[[PyTree], Array]
    adjoint: Callable[[Array], PyTree]
    structure: jax.ShapeDtypeStruct = eqx.field(static=True)

    def __init__(
        self,
        model: AbstractNetwork,
        inputs: Float[Array, "n *shape"],
        l2: float | Scalar,
        *,
        weights: Float[Array, "n classes"] | None = None,
        head_weight: float | Scalar | None = None,
        linearization: Linearization | None = None,
    ):
        at = linearize(model, inputs) if linearization is None else linearization
        self.model, self.inputs, self.l2 = model, inputs, l2
        self.weights, self.head_weight = weights, head_weight
        self.features, self.structure = at.features, at.out_structure
        self.jacobian = at.tangent
        self.adjoint = eqx.filter_closure_convert(at.vjp, at.out_structure)  # transposed once

    def tangent(self, v: PyTree) -> Float[Array, "n classes"]:
        return self.jacobian(v)

    def cotangent(self, u: Float[Array, "n classes"]) -> PyTree:
        return self.adjoint(u)

    def weigh(self, v: PyTree) -> PyTree:
        """v, with the head's part times `head_weight`."""
        if self.head_weight is None:
            return v
        return eqx.tree_at(lambda m: m.head.kernel, v, replace_fn=lambda x: x * self.head_weight)

    @property
    def scale(self) -> float | Scalar:
        return self.l2

    @property
    def noise(self) -> float | Scalar | Float[Array, "n classes"]:
        return self.l2 if self.weights is None else self.l2 / self.weights

    def preconditioner(self) -> lx.FunctionLinearOperator:
        h = self.features
        K = h @ h.T if self.head_weight is None else self.head_weight * (h @ h.T)
        identity = jnp.eye(len(h), dtype=h.dtype)
        if self.weights is None:
            factor = jsp.linalg.cho_factor(K + self.l2 * identity)

            def inverse(r: Array) -> Array:
                return jsp.linalg.cho_solve(factor, r)
        else:
            ridges = self.l2 / self.weights
            factors = jax.vmap(lambda d: jnp.linalg.cholesky(K + jnp.diag(d)), 1)(ridges)

            def inverse(r: Array) -> Array:
                solve = jax.vmap(lambda L, r: jsp.linalg.cho_solve((L, True), r), (0, 1), 1)
                return solve(factors, r)

        return lx.FunctionLinearOperator(inverse, self.structure, lx.positive_semidefinite_tag)

    def as_matrix(self) -> Float[Array, "m m"]:
        """The matrix, input after input and class after class within."""
        K = tangent_gram(self.model, self.inputs, self.features, self.head_weight)
        noise = jnp.broadcast_to(jnp.asarray(self.noise, K.dtype), self.structure.shape)
        return K + jnp.diag(noise.ravel())

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """`[n classes]`."""
        return self.structure
