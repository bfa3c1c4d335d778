"""How good a distilled set is: fresh networks trained on it, tested on real images."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar, Shaped
from rich.progress import track

from .._backend import networks_at_once
from .._checks import check_counts, check_key
from .._coreset import Coreset, hard_labels
from .._losses import InnerLoss
from .._types import PyTree
from ..data import AbstractImages, Dataset, apply_in_chunks
from ..data._adapt import Examples, as_images
from ..io._result import DistillResult
from ..models import AbstractNetwork, ConvNet, MakeModel, network_for
from ..models._architectures import (
    NETWORKS,
    architecture_name,
    describe_network,
)
from ..models._check import check_model
from ..models._normalize import check_known
from ..models._training import running_rate, split_for_training, training_outputs
from ._augment import Augmentation, as_augmentation, describe_augmentation
from ._report import Evaluation

_TEST_BATCH = 500


class Training(NamedTuple):
    """What `train_network` takes by name, but for the key."""

    steps: int
    learning_rate: float
    batch_size: int
    loss: InnerLoss
    augment: Augmentation | None


def mean_squared(
    predictions: Float[Array, "n classes"], labels: Float[Array, "n classes"]
) -> Scalar:
    """The mean of (f − y)²: what evaluation networks minimise (paper, appendix C)."""
    return jnp.mean((predictions - labels) ** 2)


def cross_entropy(
    predictions: Float[Array, "n classes"], labels: Float[Array, "n classes"]
) -> Scalar:
    """The mean softmax cross-entropy: what evaluation networks minimise on hard labels."""
    return jnp.mean(optax.softmax_cross_entropy(predictions, labels))


_LOSSES = (
    (mean_squared, "mean over images and classes of (output - label)^2"),
    (cross_entropy, "mean over images of the softmax cross-entropy"),
)


def evaluate(
    distilled: DistillResult | Coreset,
    test: Dataset | AbstractImages | Examples | tuple[Any, Any],
    *,
    key: PRNGKeyArray,
    model: MakeModel | None = None,
    num_networks: int = 5,
    steps: int | None = None,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    labels: Literal["learned", "hard"] = "learned",
    loss: InnerLoss | None = None,
    augment: bool | str | Augmentation | None = None,
    at_once: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Train fresh networks on a distilled set and test them on real images (appendix C).

    **Arguments:**

    - `distilled`: a `DistillResult`, which is evaluated beside random real images of the same
      budget, or a `Coreset` that carries its preprocessing.
    - `test`: raw test images with labels, in any form `distill` takes but a grain dataset; read
      into memory.
    - `key`: source of the fresh networks.
    - `model`: a function from a key to a network. If `None`, the ready network that the set was
      distilled with, its normalisation included, with ReLU; where that is not known, or it is one
      of your own, the paper's `ConvNet`.
    - `num_networks`: fresh networks, one random seed each.
    - `steps`, `learning_rate`, `batch_size`: of Adam, as in
      [`train_network`][rcig_eqx.train_network]; 1000 steps for up to ten distilled images and
      2000 above if `None`.
    - `labels`: `"learned"` ones as they are, or `"hard"`, the class each of them ranks first.
    - `loss`: what the networks minimise, a function `(predictions, labels) -> scalar` of a batch;
      if `None` the paper's mean-squared error, and cross-entropy on hard labels.
    - `augment`: how images change at random at every step: `True` for the paper's augmentation
      (six operations in colour, four in grey; appendix C), a strategy such as `"flip_crop"`, an
      [`Augment`][rcig_eqx.Augment], or a function `(images, *, key) -> images`. The paper finds it
      to help sets of over 200 images and to harm smaller ones (Table 8).
    - `at_once`: networks trained together by `vmap`; chosen by the backend if `None`.
    - `progress`: whether to show a progress bar.

    **Returns:** an `Evaluation`. Raises `ValueError` for test images that do not fit the set, and
    warns of networks that diverged, whose accuracy is 0.
    """
    counts = {"steps": steps, "at_once": at_once}
    check_counts(
        num_networks=num_networks,
        batch_size=batch_size,
        **{name: value for name, value in counts.items() if value is not None},
    )
    check_key(key)
    check_known("labels", labels, ("learned", "hard"))
    if not learning_rate > 0:
        raise ValueError(f"A learning_rate of {learning_rate} learns nothing: make it positive.")
    loss = loss or (mean_squared if labels == "learned" else cross_entropy)
    coreset = distilled.coreset if isinstance(distilled, DistillResult) else distilled
    test = in_memory(test)
    names = distilled.class_names if isinstance(distilled, DistillResult) else test.class_names
    _check_fit(coreset, test, names)
    assert coreset.preprocess is not None
    model = model or fresh_network(distilled)
    check_model(model, coreset)
    sets = [coreset]
    if isinstance(distilled, DistillResult):
        sets.append(distilled.baseline)
    sets = [hard_labels(s) for s in sets] if labels == "hard" else sets
    augmentation = as_augmentation(augment, coreset.images.shape[3])
    steps = steps or default_steps(len(coreset.images))
    at_once = min(at_once or networks_at_once(num_networks), num_networks)
    images = jnp.asarray(apply_in_chunks(coreset.preprocess, test.images))
    truth = jnp.asarray(test.labels, jnp.int32)
    training = Training(steps, learning_rate, batch_size, loss, augmentation)
    hard = {"labels": "hard: one-hot, of the class that the learned label ranks first"}
    keys = [jr.split(key, num_networks)[i : i + at_once] for i in range(0, num_networks, at_once)]
    jobs = [(s, k) for s in range(len(sets)) for k in keys]
    hits: list[list[np.ndarray]] = [[] for _ in sets]
    diverged = 0
    for s, k in track(jobs, "evaluating", disable=not progress):
        X, y = sets[s].support()
        right, sound = _train_and_test(model, X, y, images, truth, k, training)
        hits[s].append(np.asarray(right))
        diverged += len(k) - int(sound.sum())
    if diverged:
        warnings.warn(
            f"{diverged} of {len(sets) * num_networks} networks diverged in training: none of "
            f"their answers counts as right. Lower learning_rate={learning_rate}.",
            RuntimeWarning,
            stacklevel=2,
        )
    reports = [_report(np.concatenate(h), test.labels, names, steps) for h in hits]
    return dataclasses.replace(
        reports[0],
        baseline=reports[1] if len(reports) > 1 else None,
        training=training_recipe(model, **training._asdict()) | (hard if labels == "hard" else {}),
        tested_on={
            "dataset": test.name,
            "images": len(test),
            "key": np.asarray(jr.key_data(key)).tolist(),
        },
    )


def fresh_network(
    distilled: DistillResult | Coreset,
    *,
    architecture: str | None = None,
    normalization: str | None = None,
    width: int | None = None,
    depth: int | None = None,
) -> MakeModel:
    """A ready network with ReLU for a distilled set: as distilled, but for what is given here.

    The network a set was distilled with is in the recipe of a `DistillResult`; where it is not
    known, or none of the ready ones, it is the paper's `ConvNet`. Another architecture has its
    usual size, and the normalisation distilled with; `normalization="none"` leaves that out.
    """
    is_result = isinstance(distilled, DistillResult)
    coreset = distilled.coreset if is_result else distilled
    known = dict(distilled.recipe.get("model", {})) if is_result else {}
    name = str(known.get("name")).lower()
    if name not in NETWORKS:
        name, known = "convnet", {k: known[k] for k in ("width", "depth") if k in known}
    wanted = architecture_name(architecture or name)
    if wanted != name:
        known = {"normalization": known.get("normalization")}
    _, height, width_px, channels = coreset.images.shape
    return network_for(
        wanted,
        (height, width_px, channels),
        coreset.num_classes,
        width=width or known.get("width"),
        depth=depth or known.get("depth"),
        growth=known.get("growth"),
        normalization=normalization or known.get("normalization"),
        softplus=None,
    )


def in_memory(test: Any) -> Dataset:
    """Test images in any form, or `ValueError`."""
    images = as_images(test)
    return images.read() if isinstance(images, AbstractImages) else images


def _check_fit(coreset: Any, test: Dataset, names: tuple[str, ...]) -> None:
    """Raise `ValueError` unless the distilled set can be tested on these images."""
    if not isinstance(coreset, Coreset):
        raise ValueError(
            f"distilled is a {type(coreset).__name__}: pass what distill or load_result returned."
        )
    if coreset.preprocess is None:
        raise ValueError(
            "This coreset does not carry its preprocessing: pass the DistillResult itself, or set "
            "the coreset's preprocess field."
        )
    if test.image_shape != coreset.images.shape[1:]:
        raise ValueError(
            f"The distilled images are {coreset.images.shape[1:]} and the test images "
            f"{test.image_shape}: evaluate on the data set that was distilled."
        )
    check_same_numbers(names, test)
    if test.num_classes > coreset.num_classes:
        raise ValueError(
            f"The distilled set has {coreset.num_classes} classes and the test set "
            f"{test.num_classes}: evaluate on the data set that was distilled."
        )


def check_same_numbers(names: tuple[str, ...], data: Dataset) -> None:
    """Raise `ValueError` if the classes that `data` names have other numbers among `names`."""
    there = data.class_names
    if set(there) <= set(names) and there != names[: len(there)]:
        name = next(c for i, c in enumerate(there) if names[i] != c)
        raise ValueError(
            f"Class {name!r} is number {there.index(name)} of {data.name} and number "
            f"{names.index(name)} of the set that was distilled: renumber the labels, and pass "
            "data.Dataset.from_arrays(images, labels, result.class_names)."
        )


@eqx.filter_jit
def _train_and_test(
    make_model: MakeModel,
    X: Float[Array, "n h w c"],
    y: Float[Array, "n classes"],
    images: Float[Array, "t h w c"],
    labels: Int[Array, " t"],
    keys: Shaped[Array, "networks ..."],
    training: Training,
) -> tuple[Bool[Array, "networks t"], Bool[Array, " networks"]]:
    """Whether each of `len(keys)` networks trained on (X, y) gets each test image right, and
    whether it answers at all."""

    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        model_key, train_key = jr.split(key)
        model = train_network(make_model(model_key), X, y, **training._asdict(), key=train_key)
        said = answers(model, images)
        return said == labels, jnp.any(said >= 0)

    return each_row(one, keys)


def each_row(function: Callable[..., PyTree], *stacked: Shaped[Array, "networks ..."]) -> PyTree:
    """`function` of every row of all arrays, stacked: by `vmap`, but for a single row."""
    if len(stacked[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(*(rows[0] for rows in stacked)))
    return eqx.filter_vmap(function)(*stacked)


def _report(
    hits: Bool[np.ndarray, "networks t"],
    labels: np.ndarray,
    class_names: tuple[str, ...],
    steps: int,
) -> Evaluation:
    columns = [hits[:, labels == c] for c in range(len(class_names))]
    empty = np.full(len(hits), math.nan)
    per_class = np.stack([c.mean(1) if c.shape[1] else empty for c in columns], axis=1)
    return Evaluation(hits.mean(1), per_class, class_names, steps)


def default_steps(num_distilled: int) -> int:
    """Training steps of an evaluation: 1000 for ten distilled images, else 2000 (appendix C).

    Mirrored copies are not counted.
    """
    return 1000 if num_distilled <= 10 else 2000


def evaluation_schedule(steps: int, peak: float = 1e-4) -> optax.Schedule:
    """Linear warm-up over 500 steps, then cosine decay to 1% of the peak (appendix C).

    The paper gives the warm-up and the shape, the authors' code the end. Runs of less than 1000
    steps warm up for half of theirs.
    """
    warmup = min(500, steps // 2)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, 0.01 * peak)


def training_recipe(
    model: MakeModel,
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    loss: InnerLoss = mean_squared,
    augment: Augmentation | None = None,
) -> dict[str, Any]:
    """What [`train_network`][rcig_eqx.train_network] does to a fresh network, in plain values.

    For a `ConvNet` without normalisation it is enough to build and train it without this library;
    of another ready network it has the name and options, of one's own, and of a loss of one's own,
    the name alone.
    """
    network = eqx.filter_eval_shape(model, jr.key(0))
    layout = describe_network(network)
    if isinstance(network, ConvNet):
        normalized = layout["normalization"] != "none"
        filters = f"width * {layout.get('growth', 2)}^i"
        layout |= {
            "padding": [block.padding for block in network.blocks],
            "blocks": f"convolution 3x3 of {filters} filters with bias, stride 1, zero-padded by "
            f"padding[i]; {'normalization; ' if normalized else ''}activation; mean over 2x2, "
            "stride 2, an odd last row or column dropped",
            "head": "features flattened in the order h, w, c; one linear layer with bias",
            "initialization": "kernels: normal of standard deviation s, cut off at 2 s, where s is "
            "1 / sqrt(inputs of a unit) / 0.87962566; biases: 0",
        }
    changed = {"augmentation": describe_augmentation(augment)} if augment else {}
    own = f"{getattr(loss, '__name__', type(loss).__name__)}, which is not described here"
    return changed | {
        "network": layout,
        "loss": next((text for known, text in _LOSSES if known is loss), own),
        "optimizer": {"name": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        "learning_rate": {
            "peak": float(learning_rate),
            "warmup_steps": min(500, int(steps) // 2),
            "final": 0.01 * float(learning_rate),
            "schedule": "step t = 0, 1, ...: peak * t / warmup_steps, then final + (peak - final) "
            "* (1 + cos(pi * (t - warmup_steps) / (steps - warmup_steps))) / 2",
        },
        "steps": int(steps),
        "batch_size": int(batch_size),
        "batches": "all images every step, or batch_size random ones of them if there are more",
    }


def train_network(
    model: AbstractNetwork,
    images: Float[Array, "n h w c"],
    labels: Float[Array, "n classes"],
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    loss: InnerLoss = mean_squared,
    augment: Augmentation | None = None,
    key: PRNGKeyArray,
) -> AbstractNetwork:
    """Train one network on a distilled set by the paper's protocol (appendix C).

    Adam on the mean-squared error against the learned labels, or another `loss`, the whole set
    every step, or a random `batch_size` of it where it is larger, changed by `augment`. Batch
    normalisation is by the images of a step; what it stores, a tenth of it renewed by each, is
    what the network that is returned normalises by. Jittable.
    """
    training = Training(steps, learning_rate, batch_size, loss, augment)
    start, step, network_of = training_steps(model, images, labels, training, key=key)
    carry, _ = jax.lax.scan(lambda c, n: (step(n, c), None), start, jnp.arange(steps))
    return network_of(carry)


def training_steps(
    model: AbstractNetwork,
    images: Float[Array, "n h w c"],
    labels: Float[Array, "n classes"],
    training: Training,
    *,
    key: PRNGKeyArray,
) -> tuple[PyTree, Callable[[Any, PyTree], PyTree], Callable[[PyTree], AbstractNetwork]]:
    """What `train_network` is made of: the start, a step `(number, carry) -> carry`, and the
    network of a carry."""
    steps, learning_rate, batch_size, loss, augment = training
    optimizer = optax.adam(evaluation_schedule(steps, learning_rate))
    parameters, stored, static = split_for_training(model)
    keys = jr.split(key, steps)

    def loss_of(
        parameters: PyTree, stored: PyTree, rate: Scalar, images: Array, labels: Array
    ) -> tuple[Array, PyTree]:
        network = eqx.combine(parameters, stored, static)
        outputs, network = training_outputs(network, images, rate=rate)
        return loss(outputs, labels), split_for_training(network)[1]

    def step(number: Any, carry: PyTree) -> PyTree:
        parameters, stored, opt_state = carry
        batch = (images, labels)
        if len(images) > batch_size:
            pick = jr.fold_in(keys[number], 0)
            chosen = jr.choice(pick, len(images), (batch_size,), replace=False)
            batch = (images[chosen], labels[chosen])
        if augment is not None:
            batch = (augment(batch[0], key=jr.fold_in(keys[number], 1)), batch[1])
        rate = running_rate(number)
        gradient, stored = jax.grad(loss_of, has_aux=True)(parameters, stored, rate, *batch)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(parameters, updates), stored, opt_state

    def network_of(carry: PyTree) -> AbstractNetwork:
        return eqx.combine(carry[0], carry[1], static)  # pyright: ignore[reportReturnType]

    return (parameters, stored, optimizer.init(parameters)), step, network_of


def correct(
    model: AbstractNetwork,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
) -> Bool[Array, " n"]:
    """Whether the network's largest output is the label, image by image. Jittable.

    An image with an output that is not finite is not right, whatever its label.
    """
    return answers(model, images) == labels


def answers(model: AbstractNetwork, images: Float[Array, "n h w c"]) -> Int[Array, " n"]:
    """The class of the largest output, image by image; −1 where an output is not finite."""

    def one(image: Array) -> Array:
        outputs = model(image[None])[0]
        return jnp.where(jnp.isfinite(outputs).all(), jnp.argmax(outputs), -1)

    return jax.lax.map(one, images, batch_size=_TEST_BATCH)
