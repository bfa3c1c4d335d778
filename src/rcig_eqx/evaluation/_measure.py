"""Networks trained on sets and tested: what every evaluation is made of."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int64, PRNGKeyArray, Shaped

from .._console import track
from .._coreset import Coreset
from .._types import PyTree
from ..models import AbstractNetwork, MakeModel
from ._metrics import Metric, ranked_first
from ._report import CONFUSED_UP_TO, Evaluation
from ._train_network import TEST_BATCH, Training, final_losses, fit, have_converged, outputs_of

Probe = Callable[..., dict[str, Array]]
"""A jittable function `(network, *, key)` of a trained network to scalars by name."""


class Trial(NamedTuple):
    """Fresh networks, how each is trained, what it is tested on, and what is measured then."""

    model: MakeModel
    training: Training
    images: Float[Array, "t *shape"]
    labels: Int[np.ndarray, " t"]
    class_names: tuple[str, ...]
    keys: Shaped[Array, "networks ..."]
    at_once: int
    metrics: dict[str, Metric]
    probe: Probe | None = None


def warn(message: str, *, stacklevel: int = 4) -> None:
    """A `RuntimeWarning` at the line that called `evaluate`, or what is wrapped as it is."""
    warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


def measure(
    trials: Sequence[tuple[Trial, Sequence[Coreset]]], what: str, *, shown: bool
) -> list[Evaluation]:
    """What each trial measures of its sets: network number i is trained on set i % their number.

    Warns of networks that diverged. `what` is what the progress bar is called.
    """
    jobs = [
        (number, first)
        for number, (trial, _) in enumerate(trials)
        for first in range(0, len(trial.keys), trial.at_once)
    ]
    found: list[list[Any]] = [[] for _ in trials]
    for number, first in track(jobs, what, shown=shown):
        trial, sets = trials[number]
        own = trial.keys[first : first + trial.at_once]
        trained_on = [sets[i % len(sets)].support() for i in range(first, first + len(own))]
        X, y = jax.tree.map(lambda *x: jnp.stack(x), *trained_on)
        given = (X, y, trial.images, jnp.asarray(trial.labels), own, trial.training)
        outcome = _train_and_test(trial.model, *given, trial.metrics, trial.probe)
        found[number].append(jax.tree.map(np.asarray, outcome))
    outcomes = [jax.tree.map(lambda *x: np.concatenate(x), *parts) for parts in found]
    diverged = [int((said < 0).all(1).sum()) for said, *_ in outcomes]
    if any(diverged):
        rate = max(t.training.learning_rate for t, _ in itertools.compress(trials, diverged))
        warn(
            f"{sum(diverged)} of {sum(len(trial.keys) for trial, _ in trials)} networks diverged "
            f"in training: none of their answers counts as right. Lower learning_rate={rate}.",
            stacklevel=5,
        )
    return [
        _report(outcome, trial, len(sets))
        for outcome, (trial, sets) in zip(outcomes, trials, strict=True)
    ]


@eqx.filter_jit
def _train_and_test(
    make_model: MakeModel,
    X: Float[Array, "networks n *shape"],
    y: Float[Array, "networks n classes"],
    images: Float[Array, "t *shape"],
    labels: Int[Array, " t"],
    keys: Shaped[Array, "networks ..."],
    training: Training,
    metrics: dict[str, Metric],
    probe: Probe | None,
) -> tuple[
    Int[Array, "networks t"],
    Float[Array, "networks steps"],
    Float[Array, "networks steps"],
    dict[str, Float[Array, " networks"]],
]:
    """Of networks trained on (X, y), a set each: the answer of each to each test image, −1 for
    none, the losses and agreements of its training, as of `fit`, and what metrics and probe found.
    """

    def one(key: PRNGKeyArray, X: Array, y: Array) -> tuple[Any, ...]:
        model_key, train_key = jr.split(key)
        model, losses, agreed = fit(make_model(model_key), X, y, training, key=train_key)
        seen = {} if probe is None else probe(model, key=jr.fold_in(key, 2**31))
        if not metrics:  # nothing but the answers is kept of a test pass
            return answers(model, images), losses, agreed, seen
        outputs = outputs_of(model, images)
        found = {name: metric(outputs, labels) for name, metric in metrics.items()}
        return ranked_first(outputs), losses, agreed, found | seen

    return each_row(one, keys, X, y)


def each_row(function: Callable[..., PyTree], *stacked: Shaped[Array, "networks ..."]) -> PyTree:
    """`function` of every row of all arrays, stacked: by `vmap`, but for a single row."""
    if len(stacked[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(*(rows[0] for rows in stacked)))
    return eqx.filter_vmap(function)(*stacked)


def _report(outcome: Any, trial: Trial, sets: int) -> Evaluation:
    """What `_train_and_test` found of all networks, number i trained on set i % `sets`."""
    said, losses, agreed, measured = outcome
    hits = said == trial.labels
    columns = [hits[:, trial.labels == c] for c in range(len(trial.class_names))]
    empty = np.full(len(hits), np.nan)
    per_class = np.stack([c.mean(1) if c.shape[1] else empty for c in columns], axis=1)
    return Evaluation(
        hits.mean(1),
        per_class,
        trial.class_names,
        trial.training.steps,
        sets=np.arange(len(hits)) % sets if sets > 1 else None,
        losses=final_losses(losses).astype(np.float64),
        converged=have_converged(losses, agreed),
        metrics={name: values.astype(np.float64) for name, values in measured.items()},
        confusion=_confusion(said, trial.labels, len(trial.class_names)),
    )


def _confusion(
    said: Int[np.ndarray, "networks t"], labels: Int[np.ndarray, " t"], classes: int
) -> Int64[np.ndarray, "classes classes"] | None:
    """How often each class (row) was answered by each, over all networks."""
    if classes > CONFUSED_UP_TO:
        return None
    pairs = (labels * classes + said)[said >= 0]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def correct(
    model: AbstractNetwork,
    images: Float[Array, "n *shape"],
    labels: Int[Array, " n"],
) -> Bool[Array, " n"]:
    """Whether the network's largest output is the label, image by image. Jittable.

    An image with an output that is not finite is not right, whatever its label.
    """
    return answers(model, images) == labels


def answers(model: AbstractNetwork, images: Float[Array, "n *shape"]) -> Int[Array, " n"]:
    """The class of the largest output, image by image; −1 where an output is not finite."""

    def one(image: Array) -> Array:
        return ranked_first(model(image[None])[0])

    return jax.lax.map(one, images, batch_size=TEST_BATCH)
