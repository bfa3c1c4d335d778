"""The bilevel problem: fit a linearized network, then judge the fit on other images.

    θ(λ) = argmin ½ ‖J θ − y‖² + ½ Σ_l λ_l ‖θ_l‖²        L(λ) = mean of (J_val θ(λ) − y_val)²

J is the Jacobian of the network's outputs in its parameters, cut into one matrix a layer, and λ
has one number a layer. What is searched is log λ.
"""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from rcig_eqx.bilevel import LeastSquares
from rcig_eqx.data import AbstractPreprocess, Dataset
from rcig_eqx.initializers import centered_labels
from rcig_eqx.methods import linearize, ridge_head
from rcig_eqx.models import ConvNet

Layers = tuple[Float[Array, " _"], ...]
"""θ: the displacement of each layer's parameters, flattened."""


class Examples(eqx.Module):
    """Images as the linearized network sees them: a row for each image and class."""

    jacobian: tuple[Float[Array, "rows _"], ...]
    targets: Float[Array, " rows"]


def examples(network: ConvNet, data: Dataset, preprocess: AbstractPreprocess) -> Examples:
    """The Jacobian of a network at some images, and their centered one-hot labels."""
    dtype = network.head.kernel.dtype
    unit = jnp.eye(data.num_classes, dtype=dtype)[:, None]

    def rows(image: Float[Array, "h w c"]) -> tuple[Float[Array, "classes _"], ...]:
        gradients = jax.vmap(linearize(network, image[None]).vjp)(unit)
        return tuple(map(matrix, (*gradients.blocks, gradients.head)))

    images = jnp.asarray(preprocess(data.images), dtype)
    jacobian = cast(tuple[Array, ...], jax.lax.map(rows, images))
    targets = centered_labels(np.asarray(data.labels), data.num_classes).astype(dtype)
    return Examples(tuple(j.reshape(targets.size, j.shape[-1]) for j in jacobian), targets.ravel())


def matrix(layer: Any) -> Float[Array, "classes _"]:
    """The arrays of a layer, each with an axis of classes first, side by side."""
    return jnp.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(layer)], axis=1)


def predictions(theta: Layers, at: Examples) -> Float[Array, " rows"]:
    """J θ."""
    return sum((j @ t for j, t in zip(at.jacobian, theta, strict=True)), jnp.zeros_like(at.targets))


def fit(log_l2: Float[Array, " layers"], train: Examples) -> Layers:
    """θ(λ) in closed form: in units of √λ it is the head of plain ridge regression."""
    scales = jnp.exp(-0.5 * log_l2)
    scaled = [s * j for s, j in zip(scales, train.jacobian, strict=True)]
    head = ridge_head(jnp.concatenate(scaled, axis=1), train.targets[:, None], 1.0)[:, 0]
    sizes = np.cumsum([j.shape[1] for j in scaled])[:-1]
    return tuple(s * t for s, t in zip(scales, jnp.split(head, sizes), strict=True))


def _residuals(
    theta: Layers, log_l2: Float[Array, " layers"], train: Examples, validation: Examples
) -> Float[Array, " rows"]:
    return predictions(theta, train) - train.targets


def _l2(
    log_l2: Float[Array, " layers"], train: Examples, validation: Examples
) -> tuple[Scalar, ...]:
    return tuple(jnp.exp(log_l2))


inner_loss = LeastSquares(_residuals, _l2)
"""`inner_loss(theta, log_l2, train, validation)`, which `fit` minimizes."""


def validation_loss(
    theta: Layers, log_l2: Float[Array, " layers"], train: Examples, validation: Examples
) -> Scalar:
    """The mean squared error on the validation images."""
    return jnp.mean((predictions(theta, validation) - validation.targets) ** 2)


def accuracy(theta: Layers, at: Examples, num_classes: int) -> Scalar:
    """The fraction of images whose largest prediction is their label's."""
    f, y = (x.reshape(-1, num_classes).argmax(axis=1) for x in (predictions(theta, at), at.targets))
    return jnp.mean(f == y)
