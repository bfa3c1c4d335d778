"""Attacks on networks: small changes of pixels that make them err."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from ..data import AbstractPreprocess
from ..models import AbstractNetwork
from ._metrics import ranked_first

EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10
ATTACK = {"epsilon": EPSILON, "step": STEP, "steps": STEPS}
_AT_ONCE = 100  # images attacked together, to spare memory


class Preprocessed(eqx.Module):
    """A network that takes images as they are stored.

    - `network`: a network of preprocessed images.
    - `preprocess`: what they go through first.
    """

    network: AbstractNetwork
    preprocess: AbstractPreprocess

    def __call__(self, images: Num[Any, "n *shape"]) -> Float[Array, "n classes"]:
        """The logits of raw images."""
        return self.network(self.preprocess(images))


@eqx.filter_jit
def fgsm(
    classify: Callable[[Any], Array],
    pixels: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    epsilon: float = EPSILON,
) -> Float[Array, "n h w c"]:
    """The fast gradient sign method (Goodfellow et al., 2015): one step up the cross-entropy.

    **Arguments:**

    - `classify`: a function from pixels `[n h w c]` to outputs `[n classes]`, taken as logits, of
      each image by itself.
    - `pixels`: images in [0, 1].
    - `labels`: their classes.
    - `epsilon`: how far each pixel goes.

    **Returns:** the attacked pixels, in [0, 1].
    """
    return jnp.clip(pixels + epsilon * _uphill(classify, pixels, labels), 0, 1)


@eqx.filter_jit
def pgd(
    classify: Callable[[Any], Array],
    pixels: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    key: PRNGKeyArray,
    epsilon: float = EPSILON,
    step: float = STEP,
    steps: int = STEPS,
) -> Float[Array, "n h w c"]:
    """Projected gradient descent (Madry et al., 2018): steps up the cross-entropy from a random
    start.

    **Arguments:** those of `fgsm`, where `epsilon` is how far a pixel goes at most, and

    - `key`: source of the start, uniform within `epsilon`.
    - `step`, `steps`: how far each of the steps goes, and how many there are.

    **Returns:** the attacked pixels, in [0, 1].
    """
    low, high = jnp.clip(pixels - epsilon, 0, 1), jnp.clip(pixels + epsilon, 0, 1)

    def climb(_: Any, x: Array) -> Array:
        return jnp.clip(x + step * _uphill(classify, x, labels), low, high)

    noise = jr.uniform(key, pixels.shape, pixels.dtype, -epsilon, epsilon)
    return jax.lax.fori_loop(0, steps, climb, jnp.clip(pixels + noise, low, high))


def _uphill(
    classify: Callable[[Any], Array], pixels: Float[Array, "n h w c"], labels: Int[Array, " n"]
) -> Float[Array, "n h w c"]:
    """The sign of the gradient of each image's cross-entropy."""

    def loss(pixels: Array) -> Array:
        errors = optax.softmax_cross_entropy_with_integer_labels(classify(pixels), labels)
        return jnp.sum(errors)

    return jnp.sign(jax.grad(loss)(pixels))


class Robustness(eqx.Module):
    """The accuracies of a trained network on images as they are, and under each attack.

    - `preprocess`: what the network's images go through.
    - `pixels`, `labels`: the images that are attacked, in [0, 1], and their classes.
    """

    preprocess: AbstractPreprocess
    pixels: Float[Array, "n h w c"]
    labels: Int[Array, " n"]

    def __call__(self, network: AbstractNetwork, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Fractions of one by the attack's name; `clean` for none."""
        classify = Preprocessed(network, self.preprocess)

        def hits(image: tuple[Array, Array, Array]) -> dict[str, Bool[Array, ""]]:
            x, y, key = image[0][None], image[1][None], image[2]
            seen = {"clean": x, "fgsm": fgsm(classify, x, y), "pgd": pgd(classify, x, y, key=key)}
            return {name: (ranked_first(classify(x)) == y)[0] for name, x in seen.items()}

        images = (self.pixels, self.labels, jr.split(key, len(self.pixels)))
        found = jax.lax.map(hits, images, batch_size=_AT_ONCE)
        return {name: jnp.mean(right, dtype=jnp.float32) for name, right in found.items()}
