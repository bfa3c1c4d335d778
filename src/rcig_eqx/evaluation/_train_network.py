"""One network trained on a distilled set by the paper's protocol (appendix C)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, Scalar

from .._augment import Augmentation, describe_augmentation
from .._losses import InnerLoss
from .._types import PyTree
from ..models import AbstractNetwork, MakeModel
from ..models._architectures import describe_network
from ..models._training import running_rate, split_for_training, training_outputs, training_step

TEST_BATCH = 500


def outputs_of(
    network: Callable[[Any], Array], images: Num[Array, "n *shape"]
) -> Float[Array, "n classes"]:
    """The logits of any number of images, some at a time to spare memory. Jittable."""
    return jax.lax.map(lambda image: network(image[None])[0], images, batch_size=TEST_BATCH)


class Training(NamedTuple):
    """What `train_network` takes by name, but for the key."""

    steps: int
    learning_rate: float
    batch_size: int
    loss: InnerLoss
    augment: Augmentation | None


def mean_squared(
    predictions: Float[Array, "n classes"], labels: Float[Array, "n classes"]
) -> Scalar:
    """The mean of (f − y)²: what evaluation networks minimize (paper, appendix C)."""
    return jnp.mean((predictions - labels) ** 2)


def cross_entropy(
    predictions: Float[Array, "n classes"], labels: Float[Array, "n classes"]
) -> Scalar:
    """The mean softmax cross-entropy: what evaluation networks minimize on hard labels."""
    return jnp.mean(optax.softmax_cross_entropy(predictions, labels))


def usual_training(num_distilled: int, loss: InnerLoss = mean_squared, **given: Any) -> Training:
    """How networks are trained on so many images, mirrored ones not counted (appendix C).

    What is `given` and not `None` stays as it is. The paper's rate and batch for up to 100 images;
    larger sets need a higher rate to be learned in as many steps, and smaller batches to be cheap.
    """
    rate, batch = (1e-4, 256) if num_distilled <= 100 else (1e-3, 64)
    usual = Training(1000 if num_distilled <= 10 else 2000, rate, batch, loss, None)
    return usual._replace(**{name: value for name, value in given.items() if value is not None})


_LOSSES = (
    (mean_squared, "mean over images and classes of (output - label)^2"),
    (cross_entropy, "mean over images of the softmax cross-entropy"),
)


def evaluation_schedule(steps: int, peak: float = 1e-4) -> optax.Schedule:
    """Linear warm-up over 500 steps, then cosine decay to 1% of the peak (appendix C).

    The paper gives the warm-up and the shape, the authors' code the end. Runs of less than 1000
    steps warm up for half of theirs.
    """
    warmup = min(500, steps // 2)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, 0.01 * peak)


def training_recipe(
    model: MakeModel,
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    loss: InnerLoss = mean_squared,
    augment: Augmentation | None = None,
) -> dict[str, Any]:
    """What `train_network` does to a fresh network, in plain values.

    For a `ConvNet` without normalization and an `MLP` it is enough to do so without this library;
    of another ready network it has the name and options, of one's own, and of a loss of one's own,
    the name alone.
    """
    network = eqx.filter_eval_shape(model, jr.key(0))
    layout = describe_network(network) | network.layout()
    changed = {"augmentation": describe_augmentation(augment)} if augment else {}
    own = f"{getattr(loss, '__name__', type(loss).__name__)}, which is not described here"
    return changed | {
        "network": layout,
        "loss": next((text for known, text in _LOSSES if known is loss), own),
        "optimizer": {"name": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        "learning_rate": {
            "peak": float(learning_rate),
            "warmup_steps": min(500, int(steps) // 2),
            "final": 0.01 * float(learning_rate),
            "schedule": "step t = 0, 1, ...: peak * t / warmup_steps, then final + (peak - final) "
            "* (1 + cos(pi * (t - warmup_steps) / (steps - warmup_steps))) / 2",
        },
        "steps": int(steps),
        "batch_size": int(batch_size),
        "batches": "all images every step, or batch_size random ones of them if there are more",
    }


def train_network(
    model: AbstractNetwork,
    images: Float[Array, "n *shape"],
    labels: Float[Array, "n classes"],
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    loss: InnerLoss = mean_squared,
    augment: Augmentation | None = None,
    key: PRNGKeyArray,
) -> AbstractNetwork:
    """Train one network on a distilled set by the paper's protocol (appendix C).

    Adam on the mean-squared error against the learned labels, or another `loss`, the whole set
    every step, or a random `batch_size` of it where it is larger, changed by `augment`. Batch
    normalization is by the images of a step; what it stores, a tenth of it renewed by each, is
    what the network that is returned normalizes by. Jittable.
    """
    training = Training(steps, learning_rate, batch_size, loss, augment)
    return fit(model, images, labels, training, key=key)[0]


def fit(
    model: AbstractNetwork,
    images: Float[Array, "n *shape"],
    labels: Float[Array, "n classes"],
    training: Training,
    *,
    key: PRNGKeyArray,
) -> tuple[AbstractNetwork, Float[Array, " steps"], Float[Array, " steps"]]:
    """What `train_network` returns, the loss of every step's batch before the step, and the share
    of the batch whose largest output is at its label's largest entry. Jittable."""
    start, step, network_of = training_steps(model, images, labels, training, key=key)

    def body(carry: PyTree, number: Array) -> tuple[PyTree, PyTree]:
        carry = step(number, carry)
        return carry, carry[3]

    carry, (losses, agreed) = jax.lax.scan(body, start, jnp.arange(training.steps))
    return network_of(carry), losses, agreed


_SMALL = 0.05  # the part of a loss, of its fall, and of the images that does not count


def final_losses(
    losses: Float[np.ndarray, "networks steps"],
) -> Float[np.ndarray, " networks"]:
    """The mean loss over the last tenth of the steps."""
    return losses[:, -max(1, losses.shape[1] // 10) :].mean(1)


def have_converged(
    losses: Float[np.ndarray, "networks steps"], agreed: Float[np.ndarray, "networks steps"]
) -> Bool[np.ndarray, " networks"]:
    """Whether each network learned its training set, from what `fit` returns.

    Either its final loss is at most 5% of the first step's, or, of a loss whose minimum is not 0,
    at most 5% of its fall came after half of the steps and at least 95% of the images get the
    class that their label ranks first. The rate is near 0 at the end, so the last steps tell
    nothing by themselves.
    """
    tenth = max(1, losses.shape[1] // 10)
    first, final = losses[:, 0], final_losses(losses)
    middle = losses[:, losses.shape[1] // 2 :][:, :tenth].mean(1)
    settled = (first > final) & (middle - final <= _SMALL * (first - final))
    return (final <= _SMALL * first) | (settled & (final_losses(agreed) >= 1 - _SMALL))


def training_steps(
    model: AbstractNetwork,
    images: Float[Array, "n *shape"],
    labels: Float[Array, "n classes"],
    training: Training,
    *,
    key: PRNGKeyArray,
) -> tuple[PyTree, Callable[[Any, PyTree], PyTree], Callable[[PyTree], AbstractNetwork]]:
    """What `train_network` is made of: the start, a step `(number, carry) -> carry`, and the
    network of a carry. The last part of a carry is the loss and the agreement that `fit` returns.
    """
    steps, learning_rate, batch_size, loss, augment = training
    optimizer = optax.adam(evaluation_schedule(steps, learning_rate))
    parameters, stored, static = split_for_training(model)
    keys = jr.split(key, steps)

    def step(number: Any, carry: PyTree) -> PyTree:
        batch = (images, labels)
        if len(images) > batch_size:
            pick = jr.fold_in(keys[number], 0)
            chosen = jr.choice(pick, len(images), (batch_size,), replace=False)
            batch = (images[chosen], labels[chosen])
        if augment is not None:
            batch = (augment(batch[0], key=jr.fold_in(keys[number], 1)), batch[1])
        X, y = batch

        def loss_of(parameters: PyTree, stored: PyTree) -> tuple[Array, PyTree]:
            network = eqx.combine(parameters, stored, static)
            outputs, network = training_outputs(network, X, rate=running_rate(number))
            agreed = jnp.mean(outputs.argmax(-1) == y.argmax(-1), dtype=jnp.float32)
            value = loss(outputs, y)
            fitted = (value.astype(jnp.float32), agreed)
            return value, (split_for_training(network)[1], fitted)

        moved, fitted = training_step(loss_of, optimizer, *carry[:3])
        return *moved, fitted

    def network_of(carry: PyTree) -> AbstractNetwork:
        return eqx.combine(carry[0], carry[1], static)  # pyright: ignore[reportReturnType]

    nothing = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    return (parameters, stored, optimizer.init(parameters), nothing), step, network_of
