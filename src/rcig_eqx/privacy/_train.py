"""Networks to attack: trained with snapshots, or by a procedure given a set of images."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer, Num, PRNGKeyArray

from .._coreset import Coreset, centered_labels
from .._losses import InnerLoss
from .._types import PyTree
from ..data import AbstractPreprocess
from ..evaluation._attacks import Preprocessed as Preprocessed
from ..evaluation._train_network import Training, mean_squared, train_network, training_steps
from ..io._result import DistillResult
from ..models import AbstractNetwork, MakeModel

Images = Num[Array | np.ndarray, "n *shape"]
Train = Callable[[Any, Any, PRNGKeyArray], Callable[[Any], Array]]
"""`train(images [n *shape], labels [n], key)`: a function from images to logits `[n classes]`."""


def train_with_snapshots(
    model: AbstractNetwork,
    images: Float[Array, "n *shape"],
    labels: Float[Array, "n classes"],
    *,
    at: Sequence[int],
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    loss: InnerLoss = mean_squared,
    key: PRNGKeyArray,
) -> AbstractNetwork:
    """`train_network` for `at[-1]` steps, with the networks on the way.

    **Arguments:** those of `train_network`, and `at`: rising numbers of steps.

    **Returns:** the networks after as many steps as one, every array stacked along a new first
    axis `[len(at)]`; the last is what `train_network` gives, to rounding. Jittable.
    """
    check_rising(at)
    training = Training(int(at[-1]), learning_rate, batch_size, loss, None)
    start, step, network_of = training_steps(model, images, labels, training, key=key)

    def stretch(carry: PyTree, ends: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
        carry = jax.lax.fori_loop(*ends, step, carry)
        return carry, carry[:2]

    # One loop within another, so that a step is compiled once however many snapshots there are.
    ends = (jnp.array((0, *at[:-1])), jnp.array(at))
    _, snapshots = jax.lax.scan(stretch, start, ends)
    return network_of(snapshots)


def check_rising(at: Sequence[int]) -> None:
    """Raise `ValueError` unless these are numbers of steps, each above the one before."""
    if not len(at) or any(b <= a for a, b in zip((0, *at), at, strict=False)):
        raise ValueError(f"at is {at!r}: pass rising numbers of steps, such as (125, 250, 500).")


def confidence(
    logits: Float[Array, "n classes"], labels: Integer[Array, " n"]
) -> Float[Array, " n"]:
    """φ = log(p / (1 − p)) of the softmax probability p of each image's label.

    As the label's logit above the log-sum-exp of the others, which keeps its digits where p
    rounds to 1 (Carlini et al., 2022, section VI).
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return jnp.sum(jnp.where(is_label, logits, 0), axis=-1) - others


class train_on(eqx.Module):
    """A training procedure for [`train_shadows`][rcig_eqx.privacy.train_shadows]: on real images.

    **Arguments:**

    - `model`: a function from a key to a network.
    - `preprocess`: of raw images, the same for all networks, as `data.standardize(train.images)`.
    - `steps`, `learning_rate`, `batch_size`, `loss`: as in
      [`train_network`][rcig_eqx.evaluation.train_network], with labels one-hot − 1/C.

    It maps `(images [n *shape], labels [n], key)` to a `Preprocessed` network. Jittable.
    """

    model: MakeModel
    preprocess: AbstractPreprocess
    steps: int = eqx.field(kw_only=True)
    learning_rate: float = eqx.field(default=1e-4, kw_only=True)
    batch_size: int = eqx.field(default=256, kw_only=True)
    loss: InnerLoss = eqx.field(default=mean_squared, kw_only=True)

    def __call__(self, images: Any, labels: Any, key: PRNGKeyArray) -> Preprocessed:
        """A network trained on these images."""
        model_key, train_key = jr.split(key)
        network, x = self.model(model_key), self.preprocess(images)
        y = centered_labels(labels, eqx.filter_eval_shape(network, x[:1]).shape[-1])
        training: Any = {"steps": self.steps, "learning_rate": self.learning_rate}
        training |= {"batch_size": self.batch_size, "loss": self.loss, "key": train_key}
        return Preprocessed(train_network(network, x, y, **training), self.preprocess)


def distill_then_train(
    distill: Callable[[np.ndarray, np.ndarray, PRNGKeyArray], DistillResult | Coreset],
    model: MakeModel,
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    loss: InnerLoss = mean_squared,
) -> Train:
    """A training procedure for [`train_shadows`][rcig_eqx.privacy.train_shadows]: by distillation.

    **Arguments:**

    - `distill`: a function of raw images `[n *shape]`, labels `[n]` and a key to what
      [`distill`][rcig_eqx.distill] returns.
    - `model`: a function from a key to the network trained on the distilled set.
    - `steps`, `learning_rate`, `batch_size`, `loss`: as in
      [`train_network`][rcig_eqx.evaluation.train_network].

    **Returns:** a function `(images [n *shape], labels [n], key)` to a `Preprocessed` network, to
    pass with `jit=False`.
    """

    given: Any = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}

    @eqx.filter_jit
    def fit(coreset: Coreset, key: PRNGKeyArray) -> AbstractNetwork:
        model_key, train_key = jr.split(key)
        network, support = model(model_key), coreset.support()
        return train_network(network, *support, loss=loss, key=train_key, **given)

    def train(images: Any, labels: Any, key: PRNGKeyArray) -> Preprocessed:
        if isinstance(images, Tracer):
            raise ValueError("Distilling cannot be jitted: pass jit=False to train_shadows.")
        distill_key, fit_key = jr.split(key)
        made = distill(images, labels, distill_key)
        coreset = made.coreset if isinstance(made, DistillResult) else made
        if coreset.preprocess is None:
            raise ValueError("distill returned a coreset that does not carry its preprocessing.")
        return Preprocessed(fit(coreset, fit_key), coreset.preprocess)

    return train
