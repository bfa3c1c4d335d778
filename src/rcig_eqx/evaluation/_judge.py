"""A distilled set, anybody's, beside real images: one protocol, one table."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from .._augment import Augmentation, as_augmentation, describe_augmentation
from .._backend import available_memory, networks_at_once, usual_settings
from .._checks import ArgumentError, check_counts, check_key, check_number
from .._coreset import Coreset, check_coreset, has_hard_labels
from .._losses import InnerLoss
from ..data import AbstractImages, Dataset, apply_in_chunks, sample
from ..data._adapt import as_images
from ..data._preprocess import to_unit
from ..models import MakeModel
from ..models._check import check_model
from ._attacks import ATTACK, Robustness
from ._evaluate import (
    Images,
    check_fit,
    check_training,
    fresh_network,
    in_memory,
    names_of,
)
from ._judgement import Judgement, Row
from ._measure import Trial, measure, warn
from ._report import Evaluation
from ._rows import (
    BITS,
    FULL,
    HARD,
    LEARNED,
    OF_ALL,
    RANDOM,
    Asked,
    Kind,
    largest_count,
    row_of_all,
    rows_of_size,
)
from ._scores import ars, hlr, ior, lrs, relative_accuracy, rr
from ._train_network import cross_entropy, mean_squared, training_recipe

ATTACKS = {"clean": "not attacked", "fgsm": "FGSM", "pgd": "PGD"}
_SCORES = {  # of the accuracies of which rows, augmented or not
    "relative_accuracy": (relative_accuracy, [(LEARNED, False), (FULL, False)]),
    "hlr": (hlr, [(FULL, False), (HARD, False)]),
    "lrs": (lrs, [(FULL, False), (HARD, False), (LEARNED, False), (RANDOM, False)]),
    "ior": (ior, [(LEARNED, False), (RANDOM, False)]),
    "ars": (ars, [(LEARNED, False), (RANDOM, False), (LEARNED, True), (RANDOM, True)]),
}
_Found = dict[tuple[str, bool], Evaluation]  # by name of the row and whether images are augmented


@runtime_checkable
class DistilledSet(Protocol):
    """A set with its class names: a result, an export, a published set."""

    @property
    def coreset(self) -> Coreset: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...


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
    loss: InnerLoss | None = None,
    augment: bool | str | Augmentation | None = None,
    attacked: int = 1000,
    progress: bool = True,
) -> Judgement:
    """Judge a distilled set, ours or another's, against real images by one protocol.

    Fresh networks are trained on the set with its own and with hard labels, on random real images,
    as many and of as many bits, on k-means centroids, and on all training data; each with and
    without augmentation, but for the last. Where the set is mirrored, so are all but the last. The
    scores are those of DD-Ranking and BEARD: the set's own labels against as many random images
    give IOR and ARS, the hard labels against all training data HLR, and the attacks RR. Random
    images and centroids are trained on by the loss of the set's own labels.

    **Arguments:**

    - `distilled`: a `DistillResult`, what `load_export` returned, or anything else with a `coreset`
      and `class_names`; or a `Coreset`. It carries its preprocessing.
    - `train`, `test`: raw images with labels, as for [`evaluate`][rcig_eqx.evaluate]. Of a set on
      disk about 10,000 training images are read, and all of them to train on.
    - `key`: source of the fresh networks and the random images.
    - `class_names`, `model`, `num_networks`: as for `evaluate`.
    - `steps`, `learning_rate`: as for `evaluate`, of every row but all training data. Their
      defaults, and the batch size, are those of each row's own number of images.
    - `loss`: what networks minimize on the set's own labels, a function `(predictions, labels) ->
      scalar` of a batch, such as a cross-entropy of soft labels. If `None` the mean-squared error,
      with one-hot − 1/C as the labels of real images, and the cross-entropy if the set's labels are
      hard. Hard labels of the set are one-hot, and so are those of real images for a `loss` passed.
    - `bits_per_class`: what the set takes where it is stored; as its recipe has it if `None`. As
      many random images are compared as take no more, with 8 bits per pixel and hard labels.
    - `full`: `False` leaves out all training data; a number is the accuracy known of it, a
      fraction of one.
    - `epochs`: of all training data: so many steps as make up these epochs, of 256 random images
      each, by cross-entropy at a rate of 1e-3.
    - `augment`: as for `evaluate`; the paper's if `None`, `False` for none. Inputs that are no
      images are not augmented.
    - `attacked`: so many random test images, the same for every key, are attacked by FGSM and PGD
      (10 steps), within 8/255 of each pixel; 0 for no attack. Inputs that are no images are not
      attacked.
    - `progress`: whether to show a progress bar.

    **Returns:** a `Judgement`. Raises `ValueError`, before any training, for what does not fit
    together. Warns of networks that diverged, whose accuracy counts as 0 and whose scores are left
    out, and of networks that had not converged. k-means needs scikit-learn, the extra `judge`;
    without it that row says so.
    """
    check_key(key)
    coreset: Any = getattr(distilled, "coreset", distilled)
    check_coreset(coreset, "distilled")
    recipe = getattr(distilled, "recipe", None) or {}
    bits = recipe.get("bits_per_class") if bits_per_class is None else bits_per_class
    counts = {"num_networks": num_networks, "epochs": epochs}
    some = {"steps": steps, "bits_per_class": bits}
    check_counts(**counts, **{name: x for name, x in some.items() if x is not None})
    num_networks, epochs = int(num_networks), int(epochs)
    steps, bits = (None if x is None else int(x) for x in some.values())
    asked = _asked(coreset, steps, learning_rate, loss)
    check_number("attacked", attacked, lambda x: x in range(2**63), "a whole number of at least 0")
    full = _fraction(full)
    whole = full is True
    names, train, test = names_of(distilled, class_names), as_images(train), as_images(test, "test")
    numbers = check_fit(coreset, test, names)
    model = model or fresh_network(distilled)
    check_model(model, coreset)
    shape = coreset.images.shape[1:]
    augmentation = as_augmentation(len(shape) == 3 if augment is None else augment, shape)
    test = in_memory(test)
    at_least = num_networks * largest_count(coreset, bits)
    train = training_images(coreset, train, names, whole, at_least)
    kinds = rows_of_size(coreset, train, asked, bits, num_networks, key)
    kinds += [row_of_all(coreset, train, epochs)] * whole
    plain = kinds[0].training
    images = jnp.asarray(apply_in_chunks(coreset.preprocess, test.images))
    truth, keys = numbers[test.labels], jr.split(key, num_networks)
    known, at_once = names or test.class_names, networks_at_once(num_networks)
    trial = Trial(model, plain, images, truth, known, keys, at_once, {})
    probe = _probe(coreset, test, truth, int(attacked)) if len(shape) == 3 and attacked else None
    attacks = {"images": len(probe.labels), "chosen": "at random, seed 0"} if probe else {}
    protocol = {
        "networks": num_networks,
        "training": training_recipe(model, **plain._asdict()) | {"mirrored": coreset.flip},
        "labels": _described_labels(coreset, asked.loss),
        "as_many_bits": _own_budget(kinds),
        "augmentation": describe_augmentation(augmentation) if augmentation else None,
        "attacks": ATTACK | attacks if probe else None,
        "full": OF_ALL | {"epochs": epochs} if whole else None,
        "bits_per_class": bits,
        "train": {"dataset": train.name, "images": len(train)},
        "tested_on": {"dataset": test.name, "images": len(test)},
        "key": np.asarray(jr.key_data(key)).tolist(),
    }
    trials = _trials(kinds, trial, augmentation, probe)
    measured = measure([*trials.values()], "judging", shown=progress)
    found: _Found = dict(zip(trials, measured, strict=True))
    if (HARD, False) not in found:  # the set's own labels are hard
        found |= {(HARD, at[1]): found[at] for at in [*found] if at[0] == LEARNED}
    rows = _rows(kinds, found)
    if not isinstance(full, bool):
        rows.insert(len(kinds), Row(FULL, None, np.array([full]), note="given"))
    early = _unconverged(kinds, found, epochs)
    if early:
        warn(" ".join(early))
    notes = (*_diverged(found), *early)  # `measure` has warned of those that diverged
    return Judgement(tuple(rows), _scores(found, full), protocol, notes)


def _asked(
    coreset: Coreset, steps: int | None, learning_rate: float | None, loss: InnerLoss | None
) -> Asked:
    """The steps, rate and loss as plain values; `ValueError` for others."""
    if learning_rate is not None:
        check_number("learning_rate", learning_rate, lambda x: x > 0, "positive")
        learning_rate = float(learning_rate)
    if not (loss is None or callable(loss)):
        raise ArgumentError("loss", f"is {loss!r}: pass a function (predictions, labels).")
    usual = cross_entropy if has_hard_labels(coreset) else mean_squared
    return Asked(steps, learning_rate, loss or usual)


def _fraction(full: Any) -> bool | float:
    """`full` as a plain value; `ValueError` for another."""
    if isinstance(full, bool | np.bool_):
        return bool(full)
    check_number("full", full, lambda x: 0 < x <= 1, "True, False or a fraction of one")
    return float(full)


def _probe(
    coreset: Coreset, test: Dataset, truth: Int[np.ndarray, " t"], attacked: int
) -> Robustness:
    """Attacks on random test images, or all: files are often ordered by class."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(test))[:attacked])
    pixels, labels = to_unit(test.images[chosen]), jnp.asarray(truth[chosen], jnp.int32)
    assert coreset.preprocess is not None
    return Robustness(coreset.preprocess, pixels, labels)


def _described_labels(coreset: Coreset, loss: InnerLoss) -> dict[str, str]:
    """What labels the set has, and what labels its loss gives real images."""
    real = "one-hot - 1/classes" if loss is mean_squared else "one-hot"
    return {"distilled": "one-hot" if has_hard_labels(coreset) else "learned", "real": real}


def _own_budget(kinds: Sequence[Kind]) -> dict[str, Any] | None:
    """How networks train on random images of as many bits, where it is not as on the set."""
    own = next(kind.training for kind in kinds if kind.name == BITS)
    if own == kinds[0].training:
        return None
    return {name: getattr(own, name) for name in ("steps", "learning_rate", "batch_size")}


def training_images(
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


def _trials(
    kinds: Sequence[Kind],
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


def _rows(kinds: Sequence[Kind], found: _Found) -> list[Row]:
    """The rows of what was measured, those under attack last."""
    accuracies = {at: evaluation.accuracies for at, evaluation in found.items()}
    rows = []
    for name, each, _, _, note in kinds:
        plain, augmented = (accuracies.get((name, column)) for column in (False, True))
        rows.append(Row(name, each, plain, augmented, note))
    under, each = found[LEARNED, False].metrics, kinds[0].images_per_class
    return rows + [Row(f"{LEARNED}, {ATTACKS[name]}", each, x) for name, x in under.items()]


def _diverged(found: _Found) -> tuple[str, ...]:
    """A note of the networks that diverged, if there are any."""
    lost = {at: e.diverged for at, e in found.items() if e.diverged}
    if not lost:
        return ()
    where = dict.fromkeys(name for name, _ in lost)
    way = "Pass the accuracy as full=" if {*where} == {FULL} else "Pass a lower learning_rate"
    count = _counted(sum(lost.values()), "network")
    return (
        f"{count} diverged ({'; '.join(where)}): their accuracy counts as 0, and scores of these "
        f"rows are left out. {way}.",
    )


def _unconverged(kinds: Sequence[Kind], found: _Found, epochs: int) -> tuple[str, ...]:
    """Notes of the networks that had not converged, one per length of training."""
    early: dict[tuple[str, int, float], dict[str, int]] = {}
    for kind in kinds:
        count = sum(e.unconverged for (name, _), e in found.items() if name == kind.name)
        spent = ("step", kind.training.steps, kind.training.learning_rate)
        if kind.name == FULL:
            spent = ("epoch", epochs, 1.0)
        if count:
            early.setdefault(spent, {})[kind.name] = count
    return tuple(
        f"After {_counted(spent, unit)} {_counted(sum(rows.values()), 'network')} had not "
        f"converged ({'; '.join(rows)}): their accuracies are too low to compare. Pass "
        f"{unit}s={5 * spent}{f' or learning_rate={10 * rate:g}' * (rate < 1e-3)}."
        for (unit, spent, rate), rows in early.items()
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count > 1)}"


def _scores(found: _Found, full: bool | float) -> dict[str, float]:
    """The scores that the accuracies give of which no network diverged; `full` is one of them if it
    is a number."""
    mean = {at: evaluation.mean for at, evaluation in found.items() if not evaluation.diverged}
    if not isinstance(full, bool):
        mean[FULL, False] = full
    if not mean.get((FULL, False)):
        mean.pop((FULL, False), None)
    scores = {
        name: score(*(mean[at] for at in rows))
        for name, (score, rows) in _SCORES.items()
        if mean.keys() >= {*rows}
    }
    if (LEARNED, False) in mean and (under := found[LEARNED, False].metrics):
        clean, *attacked = (float(under[name].mean()) for name in ATTACKS)
        scores["rr"] = rr(clean, attacked)
    return scores
