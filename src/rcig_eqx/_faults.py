"""What went wrong in a step that gave no finite hypergradient, and the rule that follows."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Scalar

from ._coreset import Coreset
from ._subsample import in_chunks
from .bilevel import Hypergradient
from .methods import AbstractMethod
from .models import AbstractNetwork

L2_FACTOR = 10.0  # λ grows by so much after a rejected step, and shrinks after an accepted one
MAX_RAISES = 4  # at most so many times

SOLVE = "the solve did not end in finite numbers"

# In the order in which one causes the next.
CAUSES = (
    "",
    "the outer batch holds pixels that are not finite",
    "the network diverged, its parameters or features are not finite",
    SOLVE,
    "the outer loss is not finite",
    "the gradient is not finite",
    "the update of the distilled set is not finite: lower the optimiser's learning rate",
)


def raise_l2(method: AbstractMethod, raises: Int[Array, ""], dtype: DTypeLike) -> AbstractMethod:
    """The method with its λ times 10 to the power of `raises`."""
    return method.with_raised_l2(jnp.asarray(L2_FACTOR, dtype) ** raises.astype(dtype))


def next_raises(raises: Int[Array, ""], finite: Array) -> Int[Array, ""]:
    """One more after a rejected step, one less after an accepted one."""
    return jnp.where(finite, jnp.maximum(raises - 1, 0), jnp.minimum(raises + 1, MAX_RAISES))


def diagnose(
    method: AbstractMethod,
    model: AbstractNetwork,
    coreset: Coreset,
    images: Float[Array, "b h w c"],
    result: Hypergradient,
) -> tuple[Int[Array, ""], Scalar]:
    """Why a hypergradient is not finite, and the condition number of the head's ridge system.

    **Returns:** an index into `CAUSES`, and the condition number of h hᵀ + λI, NaN where the
    features h are not finite or the method does not solve for the head. Costs a forward pass over
    the distilled set and the eigenvalues of an n × n matrix.
    """
    X_S, y_S = coreset.support()
    h = in_chunks(model.features, X_S)
    rate, condition = method.head_l2_rate, jnp.asarray(jnp.nan, h.dtype)
    if rate is not None:
        spectrum, l2 = jnp.linalg.eigvalsh(h @ h.T), jnp.asarray(rate, h.dtype) * len(y_S)
        condition = (spectrum[-1] + l2) / (jnp.maximum(spectrum[0], 0) + l2)
    residuals = [value for name, value in result.stats.items() if "residual" in name]
    # A rectifier may turn NaN into zero, so that finite features are no proof.
    network = (eqx.filter(model, eqx.is_inexact_array), h)
    checks = (images, network, residuals, result.value, result.gradient)
    bad = jnp.stack([*(~all_finite(values) for values in checks), jnp.asarray(True)])
    return 1 + jnp.argmax(bad).astype(jnp.int32), condition


def all_finite(values: object) -> Array:
    """Whether every number of a pytree is finite; true of an empty one."""
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(values)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)


def explain(step: int, metrics: Mapping[str, float]) -> str:
    """What happened in a rejected step, in words."""
    text = f"step {step}, network {metrics['network']:.0f}: {CAUSES[int(metrics['cause'])]}"
    condition = metrics["condition"]
    if condition > 0:  # not NaN
        text += f" (condition number of the ridge head {condition:.0e})"
    return text
