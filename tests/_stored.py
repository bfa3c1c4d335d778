"""Parameterizations of every kind, and a set to store by them."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from rcig_eqx import Coreset
from rcig_eqx.initializers import centered_labels
from rcig_eqx.parameterizations import (
    AbstractStage,
    Composition,
    Cosine,
    Downsampled,
    LabelBits,
    Quantized,
    SharedBasis,
    compact,
    compose,
)

N, CLASSES, SHAPE = 12, 6, (7, 9, 3)

TABLE: dict[str, AbstractStage | Composition] = {
    "downsampled": Downsampled(2),
    "downsampled by 1.5": Downsampled(1.5),
    "cosine": Cosine(0.4),
    "shared basis": SharedBasis(3),
    "shared basis of floats": SharedBasis(3, bits=None),
    "labels": LabelBits(8),
    "largest labels": LabelBits(4, top_k=2),
    **{f"{bits} bits": Quantized(bits) for bits in (8, 4, 2, 1)},
    **{f"3 bits per {per}": Quantized(3, per) for per in ("set", "number")},
    "compact": compact(),
    "cosine of few bits": compose(Cosine(0.5), Quantized(4, per="number"), LabelBits(2)),
    "basis of few bits": compose(SharedBasis(4, bits=5), LabelBits(3, top_k=3), Quantized(6)),
    "twice": compose(Downsampled(1.5), Cosine(0.5), Quantized(7, per="set")),
}


def a_start() -> Coreset:
    """Smooth images and noisy labels."""
    images = jax.image.resize(jr.normal(jr.key(0), (N, 3, 3, 3)), (N, *SHAPE), "cubic")
    labels = centered_labels(np.repeat(np.arange(CLASSES), N // CLASSES), CLASSES)
    return Coreset(images, labels + 0.1 * jr.normal(jr.key(1), labels.shape), jnp.asarray(0.3))
