"""The bilevel problem: a classifier fitted to weighted examples, judged on clean ones.

    θ(ψ) = argmin 1/n Σ_i σ(w_i) ℓ(f_θ(x_i), y_i) + e^λ/2 ‖θ‖²       L(ψ) = mean ℓ on clean images

ψ = (w, λ) has a number for each example and one for the regularization; ℓ is the cross-entropy and
f a linear layer on pixels.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Scalar

from rcig_eqx.data import AbstractPreprocess, Dataset


class Examples(eqx.Module):
    """Preprocessed images, flattened, and their labels, right or wrong."""

    pixels: Float[Array, "n pixels"]
    labels: Int[Array, " n"]


class Weighting(eqx.Module):
    """ψ: the logit of each example's weight, and the logarithm of the L2 weight."""

    logits: Float[Array, " n"]
    log_l2: Float[Array, ""]

    @property
    def weights(self) -> Float[Array, " n"]:
        """The examples' weights, in (0, 1)."""
        return jax.nn.sigmoid(self.logits)


class Classifier(eqx.Module):
    """θ: a linear layer."""

    weight: Float[Array, "pixels classes"]
    bias: Float[Array, " classes"]

    def __call__(self, pixels: Float[Array, "n pixels"]) -> Float[Array, "n classes"]:
        """The outputs, one row an image."""
        return pixels @ self.weight + self.bias[None]


def examples(data: Dataset, preprocess: AbstractPreprocess) -> Examples:
    """A data set as the classifier sees it."""
    pixels = preprocess(data.images).reshape(len(data), -1)
    return Examples(pixels, jnp.asarray(np.asarray(data.labels), jnp.int32))


def equal_weights(train: Examples, l2: float) -> Weighting:
    """Where to start: every example counts half."""
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}: it must be positive, such as 0.1.")
    pixels = train.pixels
    return Weighting(jnp.zeros(len(pixels), pixels.dtype), jnp.asarray(np.log(l2), pixels.dtype))


def blank_classifier(train: Examples, num_classes: int) -> Classifier:
    """One that says nothing yet."""
    zeros = jnp.zeros((train.pixels.shape[1] + 1, num_classes), train.pixels.dtype)
    return Classifier(zeros[1:], zeros[0])


def cross_entropies(theta: Classifier, at: Examples) -> Float[Array, " n"]:
    """ℓ, one an example."""
    return optax.softmax_cross_entropy_with_integer_labels(theta(at.pixels), at.labels)


def inner_loss(theta: Classifier, psi: Weighting, train: Examples, validation: Examples) -> Scalar:
    """The weighted loss on the training examples, which a classifier minimizes."""
    squares = jnp.sum(theta.weight**2) + jnp.sum(theta.bias**2)
    weighted = psi.weights * cross_entropies(theta, train)
    return jnp.mean(weighted) + 0.5 * jnp.exp(psi.log_l2) * squares


def outer_loss(theta: Classifier, psi: Weighting, train: Examples, validation: Examples) -> Scalar:
    """The loss on clean examples."""
    return jnp.mean(cross_entropies(theta, validation))


def accuracy(theta: Classifier, at: Examples) -> Scalar:
    """The fraction of examples whose largest output is their label's."""
    return jnp.mean(theta(at.pixels).argmax(axis=1) == at.labels)
