"""A small random problem in float64 for the tests of hypergradients."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from rcig_eqx import Coreset, methods, platt_loss
from rcig_eqx.models import ConvNet

CLASSES = 3


def random_problem(n: int, batch: int, size: int, *, channels: int = 1, width: int, depth: int):
    """A network, a distilled set of n images, an outer batch and its one-hot targets.

    Call it where JAX has 64-bit numbers switched on.
    """
    keys = jr.split(jr.key(0), 5)
    model = ConvNet(
        in_channels=channels,
        image_size=size,
        num_classes=CLASSES,
        width=width,
        depth=depth,
        softplus=3.0,
        dtype=jnp.float64,
        key=keys[0],
    )
    coreset = Coreset(
        jr.normal(keys[1], (n, size, size, channels)),
        jr.normal(keys[2], (n, CLASSES)),
        jnp.asarray(0.3),
    )
    images = jr.normal(keys[3], (batch, size, size, channels))
    targets = jax.nn.one_hot(jr.randint(keys[4], (batch,), 0, CLASSES), CLASSES, dtype=jnp.float64)
    return model, coreset, images, targets


def exact_hypergradient(model, coreset, images, targets, *, chosen=None, **options):
    """That of `rcig(**options)`, without a key."""
    return methods.rcig(**options).through(model, coreset, images, targets, chosen)


def head_hypergradient(model, coreset, images, targets, *, chosen=None, **options):
    """That of the ridge head with the paper's outer loss."""
    made: Any = {"outer_loss": platt_loss} | options
    return methods.frepo(**made).through(model, coreset, images, targets, chosen)


def implicit_hypergradient(
    model,
    coreset,
    images,
    targets,
    *,
    chosen=None,
    linearized=True,
    reparameterized=True,
    **options,
):
    """That of the primal route, RCIG's by default."""
    method = methods.Implicit(linearized=linearized, reparameterized=reparameterized, **options)
    return method.through(model, coreset, images, targets, chosen)
