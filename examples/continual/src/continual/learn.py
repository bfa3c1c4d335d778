"""Networks that learn all classes seen from the memory alone."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rcig_eqx import convnet_for, evaluate
from rcig_eqx.data import Dataset

from .memory import Memory


def accuracies(
    memory: Memory,
    held_out: Dataset,
    *,
    key: PRNGKeyArray,
    networks: int = 3,
    steps: int = 300,
    width: int = 8,
    depth: int = 3,
) -> Float[Array, " networks"]:
    """Of fresh networks trained on the memory, on real images of all classes seen."""
    report = evaluate(
        memory.coreset,
        held_out,
        key=key,
        model=convnet_for(
            held_out.image_shape, memory.num_classes, width=width, depth=depth, softplus=None
        ),
        num_networks=networks,
        steps=steps,
        learning_rate=1e-3,
        progress=False,
    )
    return jnp.asarray(report.accuracies)
