"""Centered linearization of a network, and its two Jacobian products."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ._subsample import in_chunks
from ._types import PyTree
from .models import AbstractNetwork, split_parameters
from .models._network import check_whole


class Linearization(eqx.Module):
    """A network's first-order expansion in its parameters, at fixed inputs.

    Holds the primal activations, so that each product below is one tangent or one transpose
    pass and no forward pass is repeated; of more than `IMAGES_HELD` inputs it holds none, and
    repeats them chunk by chunk. It lives inside the trace that made it: do not return it from a
    jitted function.
    """

    features: Float[Array, "n features"]
    out_structure: jax.ShapeDtypeStruct = eqx.field(static=True)
    tangent: Callable
    transpose: Callable

    def jvp(self, displacement: PyTree) -> Float[Array, "n classes"]:
        """f_lin(X) = J(X) θ, for a displacement θ shaped like the network's parameters."""
        return self.tangent(displacement)

    def vjp(self, cotangent: Float[Array, "n classes"]) -> PyTree:
        """J(X)ᵀ u, a pytree shaped like the network's parameters."""
        (displacement,) = self.transpose(cotangent)
        return displacement


def linearize(model: AbstractNetwork, inputs: Float[Array, "n *shape"]) -> Linearization:
    """Linearize a network in its parameters around their present values θ⁰.

        f_lin(x) = J_B(x) θ_B + h(x)ᵀ θ_F

    *Centered*: the displacement (θ_B, θ_F) starts at zero and the network's own output at θ⁰ is
    not added (paper, section 3.2). Body and head displacement are one pytree, shaped like the
    network's parameters; [`partition`][rcig_eqx.models.partition] splits it. h is the features at
    θ⁰: it does not move with θ_B. Stored statistics are constants of f_lin.

    **Returns:** a `Linearization` with the features `[n features]` and the products with J
    (one tangent pass) and with Jᵀ (one transpose pass).
    """
    check_whole(model)
    parameters, static = split_parameters(model)

    def outputs(parameters: PyTree) -> tuple[Array, Array]:
        network = eqx.combine(parameters, static)

        def apply(inputs: Array) -> tuple[Array, Array]:
            features = network.features(inputs)
            return network.head(features), features

        return in_chunks(apply, inputs)

    logits, tangent, features = jax.linearize(outputs, parameters, has_aux=True)
    transpose = jax.linear_transpose(tangent, parameters)
    return Linearization(
        features, jax.ShapeDtypeStruct(logits.shape, logits.dtype), tangent, transpose
    )
