"""ψ: the distilled images, their learned labels, and the Platt temperature."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from ._checks import ArgumentError
from .data import AbstractPreprocess
from .data._arrays import plain_array


class Coreset(eqx.Module):
    """A distilled set, class after class.

    - `images`: X_S `[n *shape]`, preprocessed images `[n h w c]` or whatever the set holds;
      `preprocess.inverse` gives pixels.
    - `labels`: y_S `[n classes]`, one row per input. They start as one-hot − 1/C and are learned:
      they need not be positive nor sum to one.
    - `log_temperature`: log τ, the Platt scaling of the outer loss.
    - `preprocess`: what the images went through and a test image must; `None` inside the loop.
    - `flip`: whether the set stands for itself and its mirror images: networks are then trained on
      both. `distill` turns it on for RGB sets of up to 1,000 images. State it for a set made by
      hand, as whoever made the images did: a set distilled with mirror images loses half of its
      accuracy without them. It is `False` if not stated.

    Raises `ValueError` for numpy arrays that JAX does not take: masked ones, floats of more than 64
    bits, another byte order.
    """

    images: Float[Array, "n *shape"]
    labels: Float[Array, "n classes"]
    log_temperature: Float[Array, ""]
    preprocess: AbstractPreprocess | None = None
    flip: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        for name in ("images", "labels", "log_temperature"):
            array = getattr(self, name)
            if plain_array(array, name) is not array:
                raise ValueError(
                    f"{name} is {array.dtype} {type(array).__name__}, which JAX does not take: "
                    f"pass {name}.astype(np.float32)."
                )
        if self.flip:
            check_mirrored(np.shape(self.images)[1:])

    def __repr__(self) -> str:
        shape = "x".join(map(str, np.shape(self.images)))
        parts = [
            f"{np.shape(self.labels)[-1]} classes",
            type(self.preprocess).__name__ if self.preprocess is not None else "no preprocessing",
        ]
        return f"Coreset({shape}, {', '.join(parts)}{', flip' * self.flip})"

    def _repr_png_(self) -> bytes | None:
        from .io._plot import grid_png  # drawing is above a coreset, and a notebook alone asks

        if self.preprocess is None:
            return None
        return grid_png(self, tuple(map(str, range(self.num_classes))))

    def support(self) -> tuple[Float[Array, "m *shape"], Float[Array, "m classes"]]:
        """The images and labels to train on: mirrored copies are appended under `flip`."""
        if not self.flip:
            return self.images, self.labels
        images = jnp.concatenate([self.images, self.images[:, :, ::-1]])
        return images, jnp.concatenate([self.labels, self.labels])

    @property
    def num_classes(self) -> int:
        """The length of a label."""
        return self.labels.shape[-1]


def check_mirrored(shape: tuple[int, ...]) -> None:
    """Raise `ValueError` for inputs that have no mirror images."""
    if len(shape) != 3:
        raise ArgumentError(
            "flip", f"mirrors images [h w c], and each input here is {list(shape)}: leave flip out."
        )


def hard_labels(coreset: Coreset) -> Coreset:
    """The same images with one-hot labels of the class that each learned label ranks first."""
    top = jnp.argmax(coreset.labels, axis=-1)
    one_hot = jax.nn.one_hot(top, coreset.num_classes, dtype=coreset.labels.dtype)
    return eqx.tree_at(lambda c: c.labels, coreset, one_hot)


def has_hard_labels(coreset: Coreset) -> bool:
    """Whether all labels are one-hot, or one-hot less one number such as 1/C, but for rounding."""
    rest = coreset.labels - hard_labels(coreset).labels
    return bool(jnp.ptp(rest) <= 8 * jnp.finfo(rest.dtype).eps)


def check_coreset(coreset: Any, name: str) -> None:
    """Raise `ValueError` for what is no `Coreset`, or has arrays that no network can train on."""
    if not isinstance(coreset, Coreset):
        raise ValueError(
            f"{name} is a {type(coreset).__name__}: pass what distill or load_result returned."
        )
    images, labels = np.shape(coreset.images), np.shape(coreset.labels)
    if len(images) < 2 or len(labels) != 2 or labels[0] != images[0]:
        raise ValueError(
            f"{name} has images {images} and labels {labels}: make them [n, …], such as [n h w c], "
            "and [n classes], one row of labels per input."
        )
    for field in ("images", "labels"):
        if not jnp.issubdtype(getattr(coreset, field).dtype, jnp.floating):
            raise ValueError(
                f"{name} has {field} of {getattr(coreset, field).dtype}: make them floats; images "
                "are preprocessed, and labels are targets such as centered_labels(labels, classes)."
            )
    check_finite(coreset, name)


def check_finite(coreset: Coreset, name: str) -> None:
    """Raise `ValueError` for images, labels or a temperature that are not finite."""
    for field in ("images", "labels", "log_temperature"):
        if not np.isfinite(getattr(coreset, field)).all():
            raise ValueError(f"{name} has {field} that are NaN or infinite.")


def fold_temperature(coreset: Coreset) -> Coreset:
    """The same set with labels y_S · τ and log τ = 0, where τ multiplies the predictions.

    To the linearized inner problem and the ridge head the two are one: predictions are linear in
    the labels, and the outer loss sees them times τ. A network trained on the set adds its random
    initial function to what it learns, and labels of the scale of logits leave that the smaller
    part. Not in the paper.
    """
    scale = jnp.exp(coreset.log_temperature)
    return eqx.tree_at(
        lambda c: (c.labels, c.log_temperature),
        coreset,
        (coreset.labels * scale, jnp.zeros_like(coreset.log_temperature)),
    )


def centered_labels(
    labels: Integer[Array | np.ndarray, " n"], num_classes: int
) -> Float[Array, "n classes"]:
    """one-hot − 1/C, as in the authors' code; the paper does not say."""
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) - 1 / num_classes
