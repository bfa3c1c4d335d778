"""Networks trained on all of the training data: what a distilled set is measured against."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from .._backend import usual_settings
from .._checks import check_counts, check_key
from .._coreset import check_coreset
from ..data import apply_in_chunks
from ..data._adapt import as_images
from ..models import MakeModel
from ..models._check import check_model
from ._evaluate import Images, check_fit, fresh_network, in_memory, names_of
from ._judge import training_images
from ._measure import Trial, measure, warn
from ._report import Evaluation
from ._rows import row_of_all


@usual_settings()
def evaluate_full(
    distilled: Any,
    train: Images,
    test: Images,
    *,
    key: PRNGKeyArray,
    model: MakeModel | None = None,
    num_networks: int = 5,
    epochs: int = 10,
    progress: bool = True,
) -> Evaluation:
    """Train fresh networks on all of the training data, as [`judge`][rcig_eqx.judge] does.

    **Arguments:**

    - `distilled`: a `DistillResult`, an export, or a `Coreset`; its preprocessing is that of the
      images, and its network that of the evaluation.
    - `train`, `test`: raw images with labels, read into memory.
    - `key`, `model`, `num_networks`, `progress`: as for [`evaluate`][rcig_eqx.evaluate].
    - `epochs`: passes through the training data, in batches of 256, by cross-entropy at a rate of
      1e-3.

    **Returns:** an `Evaluation`. Raises `ValueError`, before any training, for images that do not
    fit the set or the memory. Warns of networks that diverged or had not converged.
    """
    check_key(key)
    check_counts(num_networks=num_networks, epochs=epochs)
    coreset = getattr(distilled, "coreset", distilled)
    check_coreset(coreset, "distilled")
    names, test = names_of(distilled, None), as_images(test)
    numbers = check_fit(coreset, test, names)
    model = model or fresh_network(distilled)
    check_model(model, coreset)
    train = training_images(coreset, as_images(train), names, True, 0)
    test, kind = in_memory(test), row_of_all(coreset, train, epochs)
    images = jnp.asarray(apply_in_chunks(coreset.preprocess, test.images))
    known, keys = names or test.class_names, jr.split(key, num_networks)
    truth = numbers[test.labels]
    trial = Trial(model, kind.training, images, truth, known, keys, 1, {})
    (found,) = measure([(trial, kind.sets)], "training on all the data", shown=progress)
    if found.unconverged:
        warn(
            f"After {epochs} epochs of all the training data {found.unconverged} of {num_networks} "
            f"networks had not converged: pass epochs={5 * epochs}."
        )
    return found
