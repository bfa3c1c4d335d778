"""What an evaluation may measure beside accuracies: functions of outputs and labels, by name."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from .._registry import Registry
from ..methods._method import check_loss

Metric = Callable[[Float[Array, "n classes"], Int[Array, " n"]], Scalar]
"""A jittable function of a network's outputs `[n classes]` and the true classes `[n]`."""


def ranked_first(outputs: Float[Array, "*n classes"]) -> Int[Array, "*n"]:
    """The class of the largest output; −1 where an output is not finite."""
    return jnp.where(jnp.isfinite(outputs).all(-1), jnp.argmax(outputs, -1), -1)


def accuracy(outputs: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Scalar:
    """The fraction of test examples whose largest output is the label."""
    return jnp.mean(ranked_first(outputs) == labels, dtype=jnp.float32)


def balanced_accuracy(outputs: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Scalar:
    """The mean over classes of the accuracy on each; classes without test examples are left out."""
    members = jax.nn.one_hot(labels, outputs.shape[-1], dtype=jnp.float32)
    sizes = members.sum(0)
    hits = (members * (ranked_first(outputs) == labels)[:, None]).sum(0)
    return jnp.sum(hits / jnp.maximum(sizes, 1)) / jnp.sum(sizes > 0)


METRICS: Registry[Scalar] = Registry(
    "metrics", accuracy=accuracy, balanced_accuracy=balanced_accuracy
)
"""Metrics by name: jittable functions of outputs `[n classes]` and true classes `[n]`.

Their results are in `Evaluation.metrics`."""


def find_metrics(
    wanted: Sequence[str] | Mapping[str, Metric], examples: int, classes: int
) -> dict[str, Metric]:
    """The metrics of an evaluation. `ValueError` for an unknown name, or for what is no metric."""
    if not isinstance(wanted, Mapping):
        names = (wanted,) if isinstance(wanted, str) else wanted
        wanted = {name: METRICS.find("metrics", name) for name in names}
    outputs = jax.ShapeDtypeStruct((examples, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((examples,), jnp.int32)
    takes = "(outputs [n classes], labels [n])"
    for name, metric in wanted.items():
        check_loss(f"The metric {name!r}", metric, (outputs, labels), takes)
    return dict(wanted)
