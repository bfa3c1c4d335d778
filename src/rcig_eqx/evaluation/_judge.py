"""A distilled set, anybody's, beside real images: one protocol, one table."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .._backend import available_memory, networks_at_once, usual_settings
from .._checks import ArgumentError, check_counts, check_key, check_number
from .._coreset import Coreset, check_coreset, hard_labels
from ..data import AbstractImages, Dataset, apply_in_chunks, sample
from ..data._adapt import as_images
from ..data._preprocess import to_unit
from ..initializers import kmeans
from ..models import MakeModel
from ..models._check import check_model
from ._attacks import ATTACK, Robustness
from ._augment import Augmentation, as_augmentation, describe_augmentation
from ._evaluate import (
    Images,
    check_fit,
    check_training,
    default_learning_rate,
    default_steps,
    fresh_network,
    in_memory,
    names_of,
    random_draws,
)
from ._judgement import Judgement, Row
from ._measure import Trial, measure, warn
from ._report import Evaluation
from ._scores import ars, hlr, ior, lrs, relative_accuracy, rr
from ._train_network import Training, cross_entropy, mean_squared, training_recipe

LEARNED, HARD = "distilled, learned labels", "distilled, hard labels"
RANDOM, BITS = "random real, as many images", "random real, as many bits"
CENTROIDS, FULL = "k-means centroids", "all training data"
ATTACKS = {"clean": "not attacked", "fgsm": "FGSM", "pgd": "PGD"}
_FULL: dict[str, Any] = {"batch_size": 256, "learning_rate": 1e-3}


@runtime_checkable
class DistilledSet(Protocol):
    """A set with its class names: a result, an export, a published set."""

    @property
    def coreset(self) -> Coreset: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...


class _Kind(NamedTuple):
    """What networks are trained on, and how: a row. One without sets is not trained on."""

    name: str
    images_per_class: int | None
    sets: Sequence[Coreset]
    training: Training
    note: str = ""


@usual_settings()
def judge(
    distilled: DistilledSet | Coreset,
    train: Images,
    test: Images,
    *,
    key: PRNGKeyArray,
    num_networks: int = 5,
    class_names: Sequence[str] | None = None,
    model: MakeModel | None = None,
    bits_per_class: int | None = None,
    full: bool | float = True,
    epochs: int = 10,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 256,
    augment: bool | str | Augmentation | None = None,
    attacked: int = 1000,
    progress: bool = True,
) -> Judgement:
    """Judge a distilled set, ours or another's, against real images by one protocol.

    Fresh networks are trained on the set with its learned and with hard labels, on random real
    images, as many and of as many bits, on k-means centroids, and on all training data; each with
    and without augmentation, but for the last. The scores are those of DD-Ranking and BEARD: the
    learned labels against as many random images give IOR and ARS, the hard labels against all
    training data HLR, and the attacks RR.

    **Arguments:**

    - `distilled`: a `DistillResult`, what `load_export` returned, or anything else with a `coreset`
      and `class_names`; or a `Coreset`. It carries its preprocessing.
    - `train`, `test`: raw images with labels, as for [`evaluate`][rcig_eqx.evaluate]. Of a set on
      disk about 10,000 training images are read, and all of them to train on.
    - `key`: source of the fresh networks and the random images.
    - `class_names`, `model`, `num_networks`, `steps`, `learning_rate`, `batch_size`: as for
      `evaluate`, for every row but the last.
    - `bits_per_class`: what the set takes where it is stored; as its recipe has it if `None`. As
      many random images are compared as take no more, with 8 bits per pixel and hard labels.
    - `full`: `False` leaves out all training data; a number is the accuracy known of it, a
      fraction of one.
    - `epochs`: over all training data, in batches of 256, by cross-entropy at a rate of 1e-3.
    - `augment`: as for `evaluate`; the paper's if `None`, `False` for none. Inputs that are no
      images are not augmented.
    - `attacked`: so many of the first test images are attacked by FGSM and PGD (10 steps), within
      8/255 of each pixel; 0 for no attack. Inputs that are no images are not attacked.
    - `progress`: whether to show a progress bar.

    **Returns:** a `Judgement`. Raises `ValueError`, before any training, for what does not fit
    together. k-means needs scikit-learn, the extra `judge`; without it that row says so.
    """
    check_key(key)
    check_counts(num_networks=num_networks, epochs=epochs, batch_size=batch_size)
    if learning_rate is not None:
        check_number("learning_rate", learning_rate, lambda x: x > 0, "positive")
    check_number("attacked", attacked, lambda x: x in range(2**63), "a whole number of at least 0")
    whole = full is True
    if not isinstance(full, bool):
        check_number("full", full, lambda x: 0 < x <= 1, "True, False or a fraction of one")
    coreset: Any = getattr(distilled, "coreset", distilled)
    check_coreset(coreset, "distilled")
    steps = default_steps(len(coreset.images)) if steps is None else steps
    rate = learning_rate or default_learning_rate(len(coreset.images))
    recipe = getattr(distilled, "recipe", None) or {}
    bits = recipe.get("bits_per_class") if bits_per_class is None else bits_per_class
    check_counts(steps=steps, bits_per_class=1 if bits is None else bits)
    names, train, test = names_of(distilled, class_names), as_images(train), as_images(test)
    numbers = check_fit(coreset, test, names)
    model = model or fresh_network(distilled)
    check_model(model, coreset)
    shape = coreset.images.shape[1:]
    augmentation = as_augmentation(len(shape) == 3 if augment is None else augment, shape)
    plain = Training(steps, rate, batch_size, mean_squared, None)
    train = _training_images(coreset, train, names, whole, num_networks * _most(coreset, bits))
    kinds = _kinds(coreset, train, plain, bits, num_networks, key)
    kinds += [_all_of(coreset, train, epochs)] * whole
    test = in_memory(test)
    images = jnp.asarray(apply_in_chunks(coreset.preprocess, test.images))
    truth, keys = numbers[test.labels], jr.split(key, num_networks)
    known, at_once = names or test.class_names, networks_at_once(num_networks)
    trial = Trial(model, plain, images, truth, known, keys, at_once, {})
    count = min(attacked, len(test)) if len(shape) == 3 else 0
    first = (to_unit(test.images[:count]), jnp.asarray(truth[:count], jnp.int32))
    probe = Robustness(coreset.preprocess, *first) if count else None
    protocol = {
        "networks": num_networks,
        "training": training_recipe(model, **plain._asdict()) | {"mirrored": coreset.flip},
        "augmentation": describe_augmentation(augmentation) if augmentation else None,
        "attacks": ATTACK | {"images": count} if count else None,
        "full": _FULL | {"epochs": epochs} if whole else None,
        "bits_per_class": bits,
        "train": {"dataset": train.name, "images": len(train)},
        "tested_on": {"dataset": test.name, "images": len(test)},
        "key": np.asarray(jr.key_data(key)).tolist(),
    }
    trials = _trials(kinds, trial, augmentation, probe)
    measured = measure([*trials.values()], "judging", shown=progress)
    found = dict(zip(trials, measured, strict=True))
    rows = _rows(kinds, found)
    if not isinstance(full, bool):
        rows.insert(len(kinds), Row(FULL, None, np.array([float(full)]), note="given"))
    notes = _unconverged(found, plain)
    if notes:
        warn(notes[0])
    return Judgement(tuple(rows), _scores(found, full), protocol, notes)


def _training_images(
    coreset: Coreset,
    train: Dataset | AbstractImages,
    names: tuple[str, ...] | None,
    whole: bool,
    at_least: int,
) -> Dataset:
    """Training images in memory, classes numbered as distilled: all, or `at_least` so many of
    each class."""
    numbers = check_training(coreset, train, names, what="train")
    if whole:
        size, free = 4 * len(train) * math.prod(train.image_shape), available_memory()
        if free is not None and 3 * size > free:
            raise ArgumentError(
                "full",
                f"is True, and {len(train):,} training images take three times {size / 1e9:.1f} GB "
                f"of the {free / 1e9:.1f} GB that are free. Pass full=False, or the accuracy if it "
                "is known, as full=0.9.",
            )
        train = in_memory(train)
    elif isinstance(train, AbstractImages):
        train = sample(train, 10_000, at_least=at_least, seed=0)
    return Dataset(train.images, numbers[train.labels], names or train.class_names, train.name)


def _most(coreset: Coreset, bits: int | None) -> int:
    """How many images per class are compared with at most."""
    return max(len(coreset.images) // coreset.num_classes, (bits or 0) // _bits_of_real(coreset))


def _bits_of_real(coreset: Coreset) -> int:
    """What a real image takes: 8 bits per pixel and its class; other inputs 32 per number."""
    shape = coreset.images.shape[1:]
    width = 8 if len(shape) == 3 else 32
    return width * math.prod(shape) + (coreset.num_classes - 1).bit_length()


def _kinds(
    coreset: Coreset,
    train: Dataset,
    plain: Training,
    bits: int | None,
    networks: int,
    key: PRNGKeyArray,
) -> list[_Kind]:
    """The distilled set, and what it is compared with that is as large."""
    each, hard = len(coreset.images) // coreset.num_classes, plain._replace(loss=cross_entropy)
    draws = random_draws(coreset, train, each, networks, key)
    kinds = [
        _Kind(LEARNED, each, [coreset], plain),
        _Kind(HARD, each, [hard_labels(coreset)], hard),
        _Kind(RANDOM, each, [hard_labels(draw) for draw in draws], hard),
    ]
    fit = (bits or 0) // _bits_of_real(coreset)
    most = min(fit, int(np.bincount(train.labels, minlength=coreset.num_classes).min()))
    if most in (0, each):
        note = "as above" if most else "none fits" if bits else "pass bits_per_class"
        kinds.append(_Kind(BITS, most, (), hard, note))
    else:
        more = random_draws(coreset, train, most, networks, key)
        note = f"{networks}, all there are" if most < fit else ""
        kinds.append(_Kind(BITS, most, [hard_labels(draw) for draw in more], hard, note))
    assert coreset.preprocess is not None
    try:
        clusters = kmeans()
    except ImportError as error:
        return [*kinds, _Kind(CENTROIDS, each, (), hard, str(error))]
    own_key = jr.fold_in(key, 2**31 + 1)
    centers = clusters(train, draws[0], coreset.preprocess, key=own_key)
    return [*kinds, _Kind(CENTROIDS, each, [hard_labels(centers)], hard)]


def _all_of(coreset: Coreset, train: Dataset, epochs: int) -> _Kind:
    """All training data, by minibatches."""
    assert coreset.preprocess is not None
    images = jnp.asarray(apply_in_chunks(coreset.preprocess, train.images))
    labels = jax.nn.one_hot(train.labels, coreset.num_classes, dtype=jnp.float32)
    rate, batch = _FULL["learning_rate"], _FULL["batch_size"]
    training = Training(max(1, epochs * len(train) // batch), rate, batch, cross_entropy, None)
    return _Kind(FULL, None, [Coreset(images, labels, jnp.zeros(()))], training)


def _trials(
    kinds: Sequence[_Kind],
    trial: Trial,
    augmentation: Augmentation | None,
    probe: Robustness | None,
) -> dict[tuple[str, bool], tuple[Trial, Sequence[Coreset]]]:
    """What is trained, by name of the row and whether images are augmented."""
    trials = {}
    for kind in kinds:
        if not kind.sets:
            continue
        own = trial._replace(training=kind.training)
        if kind.name == FULL:
            trials[kind.name, False] = (own._replace(at_once=1), kind.sets)
            continue
        attacked = own._replace(probe=probe if kind.name == LEARNED else None)
        trials[kind.name, False] = (attacked, kind.sets)
        if augmentation is not None:
            augmented = kind.training._replace(augment=augmentation)
            trials[kind.name, True] = (own._replace(training=augmented), kind.sets)
    return trials


def _rows(kinds: Sequence[_Kind], found: dict[tuple[str, bool], Evaluation]) -> list[Row]:
    """The rows of what was measured, those under attack last."""
    accuracies = {at: evaluation.accuracies for at, evaluation in found.items()}
    rows = []
    for name, each, _, _, note in kinds:
        plain, augmented = (accuracies.get((name, column)) for column in (False, True))
        rows.append(Row(name, each, plain, augmented, note))
    under, each = found[LEARNED, False].metrics, kinds[0].images_per_class
    return rows + [Row(f"{LEARNED}, {ATTACKS[name]}", each, x) for name, x in under.items()]


def _unconverged(found: dict[tuple[str, bool], Evaluation], training: Training) -> tuple[str, ...]:
    """A note of the networks that had not converged, if there are any."""
    early = {at: e.unconverged for at, e in found.items() if at[0] != FULL and e.unconverged}
    if not early:
        return ()
    where = "; ".join(dict.fromkeys(name for name, _ in early))
    faster = f" or learning_rate={10 * training.learning_rate:g}" * (training.learning_rate < 1e-3)
    return (
        f"After {training.steps:,} steps {sum(early.values())} networks had not converged "
        f"({where}): their accuracies are too low to compare. Pass steps={5 * training.steps}"
        f"{faster}.",
    )


def _scores(found: dict[tuple[str, bool], Evaluation], full: bool | float) -> dict[str, float]:
    """The scores that the accuracies give; `full` is one of them if it is a number."""
    mean = {at: evaluation.mean for at, evaluation in found.items()}
    learned, hard, random = (mean[name, False] for name in (LEARNED, HARD, RANDOM))
    whole = mean.get((FULL, False), 0.0) if isinstance(full, bool) else float(full)
    scores = {}
    if whole:
        scores["relative_accuracy"] = relative_accuracy(learned, whole)
        scores |= {"hlr": hlr(whole, hard), "lrs": lrs(whole, hard, learned, random)}
    scores["ior"] = ior(learned, random)
    if (LEARNED, True) in mean:
        scores["ars"] = ars(learned, random, mean[LEARNED, True], mean[RANDOM, True])
    if under := found[LEARNED, False].metrics:
        clean, *attacked = (float(under[name].mean()) for name in ATTACKS)
        scores["rr"] = rr(clean, attacked)
    return scores
