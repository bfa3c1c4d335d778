"""How good a distilled set is: fresh networks trained on it, tested on real images."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._backend import networks_at_once
from .models import AbstractNetwork

_TEST_BATCH = 500


def default_steps(num_distilled: int) -> int:
    """Training steps of an evaluation: 1000 for ten distilled images, else 2000 (appendix C)."""
    return 1000 if num_distilled <= 10 else 2000


def evaluation_schedule(steps: int, peak: float = 1e-4) -> optax.Schedule:
    """Linear warm-up over 500 steps, then cosine decay to 1% of the peak (appendix C).

    The paper gives the warm-up and the shape, the authors' code the end. Runs of less than 1000
    steps warm up for half of theirs.
    """
    warmup = min(500, steps // 2)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, 0.01 * peak)


def train_network(
    model: AbstractNetwork,
    images: Float[Array, "n h w c"],
    labels: Float[Array, "n classes"],
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    key: PRNGKeyArray,
) -> AbstractNetwork:
    """Train one network on a distilled set by the paper's protocol (appendix C).

    Adam on the mean-squared error against the learned labels, the whole set every step, or a
    random `batch_size` of it where it is larger. Jittable.
    """
    optimizer = optax.adam(evaluation_schedule(steps, learning_rate))
    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(parameters: PyTree, images: Array, labels: Array) -> Array:
        return jnp.mean((eqx.combine(parameters, static)(images) - labels) ** 2)

    def step(carry, key):
        parameters, opt_state = carry
        batch = (images, labels)
        if len(images) > batch_size:
            chosen = jr.choice(key, len(images), (batch_size,), replace=False)
            batch = (images[chosen], labels[chosen])
        updates, opt_state = optimizer.update(jax.grad(loss)(parameters, *batch), opt_state)
        return (optax.apply_updates(parameters, updates), opt_state), None

    start = (parameters, optimizer.init(parameters))
    (parameters, _), _ = jax.lax.scan(step, start, jr.split(key, steps))
    return eqx.combine(parameters, static)


def correct(
    model: AbstractNetwork,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
) -> Array:
    """Whether the network's largest output is the label, image by image. Jittable."""
    def one(image: Array) -> Array:
        return jnp.argmax(model(image[None])[0])

    return jax.lax.map(one, images, batch_size=_TEST_BATCH) == labels
