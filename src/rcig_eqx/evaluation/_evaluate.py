"""How good a distilled set is: fresh networks trained on it, tested on real images."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from .._augment import Augmentation, as_augmentation
from .._backend import networks_at_once, usual_settings
from .._balance import few_images
from .._checks import ArgumentError, check_counts, check_key, check_known
from .._coreset import Coreset, check_coreset, hard_labels
from .._losses import InnerLoss
from ..data import AbstractImages, Dataset, apply_in_chunks, sample
from ..data._adapt import Foreign, as_images
from ..data._names import class_names_of
from ..initializers import real_coreset
from ..io._result import DistillResult
from ..models import MakeModel, network_for
from ..models._architectures import NETWORKS, architecture_name, default_architecture
from ..models._check import check_model
from ._classes import match_classes
from ._measure import Trial, measure, warn
from ._metrics import Metric, balanced_accuracy, find_metrics
from ._report import Evaluation
from ._train_network import (
    cross_entropy,
    mean_squared,
    training_recipe,
    usual_training,
)

Images = Dataset | AbstractImages | Foreign | tuple[Any, Any]


@usual_settings()
def evaluate(
    distilled: DistillResult | Coreset,
    test: Images,
    *,
    key: PRNGKeyArray,
    baseline: Images | Literal[False] | None = None,
    class_names: Sequence[str] | None = None,
    model: MakeModel | None = None,
    num_networks: int = 5,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    labels: Literal["learned", "hard"] = "learned",
    loss: InnerLoss | None = None,
    augment: bool | str | Augmentation | None = None,
    metrics: Sequence[str] | Mapping[str, Metric] = (),
    at_once: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Train fresh networks on a distilled set and test them on real images (appendix C).

    **Arguments:**

    - `distilled`: a `DistillResult`, or a `Coreset` that carries its preprocessing. Networks train
      on its mirror images too if its `flip` is `True`, which the report says: for RGB images that
      can decide everything.
    - `test`: raw test images with labels, in any form `distill` takes but a grain dataset; read
      into memory. Of a `DatasetDict` it is the test split, or else the validation split. Its
      classes are matched with the distilled ones by name, in any order; some may be lacking. Bare
      arrays have no names: their labels are the numbers of the distilled classes.
    - `key`: source of the fresh networks.
    - `baseline`: training images, of which each network gets as many random ones as are distilled,
      its own draw, to compare with; `False` for no comparison. If `None`, the random draws that a
      `DistillResult` keeps, and no comparison for a bare `Coreset`.
    - `class_names`: those of a bare `Coreset`, such as `load_export(…).class_names`, to match test
      classes with. If `None`, only their number is compared. A `DistillResult` has its own.
    - `model`: a function from a key to a network. If `None`, the ready network that the set was
      distilled with, its normalization included, with ReLU; where that is not known, or it is one
      of your own, the paper's `ConvNet`.
    - `num_networks`: fresh networks, one random seed each.
    - `steps`, `learning_rate`, `batch_size`: of Adam, as in `train_network`. If `None`, by the
      number of distilled images:

        |images|steps|rate|batch|
        |---:|---:|---:|---:|
        |up to 10|1000|1e-4|all|
        |up to 100|2000|1e-4|all|
        |more|2000|1e-3|64|

      The paper has a rate of 1e-4 and batches of 256 for all. With that rate networks do not
      learn larger sets in 2000 steps.
    - `labels`: `"learned"` ones as they are, or `"hard"`, the class each of them ranks first.
    - `loss`: what the networks minimize, a function `(predictions, labels) -> scalar` of a batch;
      if `None` the paper's mean-squared error, and cross-entropy on hard labels.
    - `augment`: how images change at random at every step: `True` for the paper's augmentation
      (six operations in color, four in gray; appendix C), a strategy such as `"flip_crop"`, an
      `Augment`, or a function `(images, *, key) -> images`. The paper finds it
      to help sets of over 200 images and to harm smaller ones (Table 8).
    - `metrics`: what to measure beside accuracies: names in `evaluation.METRICS`, or a mapping from
      a name to a jittable function `(outputs [n classes], labels [n]) -> scalar`. That of a
      result of class-balanced batches is measured anyway.
    - `at_once`: networks trained together by `vmap`; chosen by the backend if `None`.
    - `progress`: whether to show a progress bar.

    **Returns:** an `Evaluation`. Raises `ValueError` for test images or classes that do not fit
    the set. Warns of networks that diverged, whose accuracy is 0, and of networks that had not
    converged, with what to pass then: few steps favor random images, whose labels are smaller.
    """
    counts = {"steps": steps, "batch_size": batch_size, "at_once": at_once}
    check_counts(
        num_networks=num_networks,
        **{name: value for name, value in counts.items() if value is not None},
    )
    check_key(key)
    check_known("labels", labels, ("learned", "hard"))
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"A learning_rate of {learning_rate} learns nothing: make it positive.")
    loss = loss or (mean_squared if labels == "learned" else cross_entropy)
    coreset = distilled.coreset if isinstance(distilled, DistillResult) else distilled
    check_coreset(coreset, "distilled")
    names = names_of(distilled, class_names)
    test = as_images(test, "test")
    numbers = check_fit(coreset, test, names)
    measures = find_metrics(metrics, len(test), coreset.num_classes)
    if getattr(distilled, "recipe", {}).get("balanced"):
        measures = {"balanced_accuracy": balanced_accuracy} | measures
    model = model or fresh_network(distilled)
    check_model(model, coreset)
    draws = _random_sets(distilled, baseline, names, num_networks, key)
    augmentation = as_augmentation(augment, coreset.images.shape[1:])
    at_once = min(at_once or networks_at_once(num_networks), num_networks)
    test = in_memory(test)
    assert coreset.preprocess is not None
    images = jnp.asarray(apply_in_chunks(coreset.preprocess, test.images))
    given = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}
    training = usual_training(len(coreset.images), loss, **given)._replace(augment=augmentation)
    keys, known = jr.split(key, num_networks), names or test.class_names
    trial = Trial(model, training, images, numbers[test.labels], known, keys, at_once, measures)
    kinds = [[coreset], draws] if draws else [[coreset]]
    if labels == "hard":
        kinds = [[hard_labels(s) for s in kind] for kind in kinds]
    report, *others = measure([(trial, kind) for kind in kinds], "evaluating", shown=progress)
    recipe = training_recipe(model, **training._asdict())
    if coreset.images.ndim == 4:
        recipe["mirrored"] = coreset.flip
    if labels == "hard":
        recipe["labels"] = "hard: one-hot, of the class that the learned label ranks first"
    tested = {"dataset": test.name, "images": len(test)}
    tested["key"] = np.asarray(jr.key_data(key)).tolist()
    beside = others[0] if others else None
    more: Any = {"baseline": beside, "training": recipe, "tested_on": tested}
    report = dataclasses.replace(report, **more)
    if report.unconverged or (beside and beside.unconverged):
        warn(" ".join(report.remarks))
    return report


def names_of(distilled: Any, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The class names of a set, or those given for a bare one. `ValueError` for invalid names."""
    own = getattr(distilled, "class_names", None)
    if own is not None and given is not None:
        raise ValueError(f"A {type(distilled).__name__} has class names: leave class_names out.")
    if own is None and given is None:
        return None
    names = class_names_of(given if own is None else own)
    classes = getattr(distilled, "coreset", distilled).num_classes
    if len(names) != classes:
        raise ValueError(
            f"class_names has {len(names)} names for {classes} classes: pass one per class."
        )
    return names


def _random_sets(
    distilled: DistillResult | Coreset,
    train: Any,
    names: tuple[str, ...] | None,
    count: int,
    key: PRNGKeyArray,
) -> Sequence[Coreset]:
    """Random real images as many as are distilled, a set of them per network where there are."""
    is_result = isinstance(distilled, DistillResult)
    if train is None or train is False:
        return distilled.baselines if is_result and train is None else ()
    coreset = distilled.coreset if is_result else distilled
    train, each = as_images(train), len(coreset.images) // coreset.num_classes
    numbers = check_training(coreset, train, names, what="baseline")
    if isinstance(train, AbstractImages):
        train = sample(train, 10_000, at_least=count * each, seed=0)
    train = Dataset(train.images, numbers[train.labels], names or train.class_names, train.name)
    if said := few_images(train, each):
        warnings.warn(said, stacklevel=4)
    return random_draws(coreset, train, each, count, key)


def check_training(
    coreset: Coreset, train: Dataset | AbstractImages, names: tuple[str, ...] | None, *, what: str
) -> Int[np.ndarray, " classes"]:
    """The distilled number of each class of training images; `ValueError` if they do not fit."""
    n, classes = coreset.labels.shape
    numbers = match_classes(train, names, classes, what=what)
    if train.image_shape != coreset.images.shape[1:] or n % classes or len(numbers) < classes:
        raise ValueError(
            f"{what} has images {train.image_shape} of {len(numbers)} classes and distilled has "
            f"{n} of {coreset.images.shape[1:]} for {classes}: pass the images it was made from."
        )
    return numbers


def random_draws(
    coreset: Coreset, train: Dataset, each: int, count: int, key: PRNGKeyArray
) -> list[Coreset]:
    """`count` sets of `each` random real images per class, to be trained on as `coreset` is.

    The classes of `train` are numbered as those of `coreset`.
    """
    assert coreset.preprocess is not None
    return [
        real_coreset(train, each, coreset.preprocess, flip=coreset.flip, key=k)
        for k in jr.split(jr.fold_in(key, 2**31), count)  # small numbers repeat keys of split
    ]


def fresh_network(
    distilled: Any,
    *,
    architecture: str | None = None,
    normalization: str | None = None,
    width: int | None = None,
    depth: int | None = None,
) -> MakeModel:
    """A ready network with ReLU for a distilled set: as distilled, but for what is given here.

    The network a set was distilled with is in the recipe of a `DistillResult` or an export; where
    it is not known, or none of the ready ones, it is the paper's `ConvNet`, or an `MLP` for rows
    [n d]. Another architecture has its usual size, and the normalization distilled with;
    `normalization="none"` leaves that out. `ValueError` for a recorded network of sizes that no
    network has: a file may come from anyone.
    """
    coreset: Coreset = getattr(distilled, "coreset", distilled)
    recipe = getattr(distilled, "recipe", None) or {}
    known = _recorded(recipe.get("model", {}))
    name = str(known.get("name")).lower()
    shape = coreset.images.shape[1:]
    if name not in NETWORKS or known.keys() == {"name"}:  # one of your own describes no options
        name = default_architecture(shape)
        known = {k: known[k] for k in ("width", "depth") if k in known}
    wanted = architecture_name(architecture or name)
    if wanted != name:
        known = {"normalization": known.get("normalization")}
    return network_for(
        wanted,
        shape,
        coreset.num_classes,
        width=width or known.get("width"),
        depth=depth or known.get("depth"),
        growth=known.get("growth"),
        normalization=normalization or known.get("normalization"),
        softplus=None,
    )


_LARGEST = {"width": 2**16, "depth": 100, "growth": 16}


def _recorded(network: Any) -> dict[str, Any]:
    """The network of a recipe; `ValueError` unless all that is read of it is in range."""
    known = dict(network) if isinstance(network, dict) else {"width": network}
    for name, most in _LARGEST.items():
        value = known.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise ArgumentError(
                "model",
                f"is left out, and the {name} that the set records is {str(value)[:20]}, no whole "
                f"number of 1 to {most:,}: pass a network, such as models.convnet_for(…).",
            )
    return known


def in_memory(test: Any) -> Dataset:
    """Test images in any form, or `ValueError`."""
    images = as_images(test, "test")
    return images.read() if isinstance(images, AbstractImages) else images


def check_fit(
    coreset: Coreset, test: Dataset | AbstractImages, names: tuple[str, ...] | None
) -> Int[np.ndarray, " classes"]:
    """The distilled number of each class of the test images; `ValueError` if they do not fit."""
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
    return match_classes(test, names, coreset.num_classes)
