"""Membership inference along training, for several sets to train on (paper, section 4.5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from .._backend import networks_at_once
from .._checks import check_counts, check_key
from .._console import track
from .._coreset import Coreset, centered_labels, check_coreset
from .._losses import InnerLoss
from ..data import Dataset, apply_in_chunks, default_preprocess
from ..evaluation._classes import renumbered
from ..evaluation._evaluate import fresh_network
from ..evaluation._measure import each_row
from ..evaluation._train_network import mean_squared, outputs_of
from ..io._result import DistillResult
from ..models import MakeModel
from ..models._check import check_model, describe_model
from ._attacks import AbstractAttack, Observations, all_attacks
from ._report import PrivacyCurve, PrivacyReport
from ._train import check_rising, train_with_snapshots

SNAPSHOTS = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)


def membership_inference(
    sets: DistillResult | Mapping[str, Coreset | Dataset],
    train: Dataset | tuple[Any, Any],
    test: Dataset | tuple[Any, Any],
    *,
    key: PRNGKeyArray,
    attacks: Sequence[AbstractAttack] | None = None,
    model: MakeModel | None = None,
    at: Sequence[int] = SNAPSHOTS,
    num_networks: int = 5,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    loss: InnerLoss = mean_squared,
    at_once: int | None = None,
    progress: bool = True,
) -> PrivacyReport:
    """Train networks on each of several sets, and attack them as to the images distilled from.

    Members are all images of `train`, whatever a network was trained on: of the few real images of
    a subset or behind a distilled set an attacker asks which data were collected. A subset that
    gives away all its own images, m of n, has an area of 1/2 + m / 2n.

    **Arguments:**

    - `sets`: what to train networks on. Of a `DistillResult` they are `"real"`, all of `train`,
      `"subset"`, its random real images, and `"distilled"`; or name them yourself.
    - `train`: the images distilled from, raw: the members.
    - `test`: raw images of the same kind that nothing was trained on: the others, on which
      accuracy is measured too.
    - `key`: source of fresh networks and attackers.
    - `attacks`: the paper's five, `all_attacks()`, if `None`.
    - `model`: a function from a key to a network; as for [`evaluate`][rcig_eqx.evaluate] if `None`.
    - `at`: training steps at which the networks are attacked. The learning rate falls towards the
      last.
    - `num_networks`: fresh networks of each set.
    - `learning_rate`, `batch_size`: of Adam, as in `train_network`.
    - `loss`: what the networks minimize; the attackers see it too, image by image, at the true
      label one-hot − 1/C times the mean height of the labels trained on.
    - `at_once`: networks trained together by `vmap`; chosen by the backend if `None`.
    - `progress`: whether to show a progress bar.

    Raises `ValueError` for input that does not fit together, and `ImportError` without
    scikit-learn unless `attacks` needs none.
    """
    check_key(key)
    check_counts(num_networks=num_networks, batch_size=batch_size)
    check_counts(at_once=1 if at_once is None else at_once)
    at = tuple(int(step) for step in at)
    check_rising(at)
    attacks = tuple(all_attacks() if attacks is None else attacks)
    _check_attacks(attacks)
    train, test = (Dataset.from_arrays(*x) if isinstance(x, tuple) else x for x in (train, test))
    coresets, train, test = _training_sets(sets, train, test)
    first = next(iter(coresets.values()))
    model = model or fresh_network(sets if isinstance(sets, DistillResult) else first)
    for coreset in coresets.values():
        check_model(model, coreset)
    at_once = min(at_once or networks_at_once(num_networks), num_networks)
    train_key, attack_key = jr.split(key)
    network_keys = jr.split(train_key, num_networks)
    raw = np.concatenate([train.images, test.images])
    labels = jnp.asarray(np.concatenate([train.labels, test.labels]), jnp.int32)
    members, others = np.split(np.arange(len(labels)), [len(train)])

    jobs = [(s, start) for s in coresets for start in range(0, num_networks, at_once)]
    accuracy = {name: np.empty((num_networks, len(at))) for name in coresets}
    areas = {name: np.empty((num_networks, len(at), len(attacks), 2)) for name in coresets}
    seen, images = None, jnp.zeros(0)
    for name, start in track(jobs, "membership inference", shown=progress):
        coreset = coresets[name]
        assert coreset.preprocess is not None
        if coreset.preprocess is not seen:
            seen, images = coreset.preprocess, jnp.asarray(apply_in_chunks(coreset.preprocess, raw))
        own_keys = network_keys[start : start + at_once]
        X, y = coreset.support()
        logits, losses = _train_and_observe(
            model, X, y, images, labels, own_keys, at, learning_rate, batch_size, loss
        )
        logits, losses = np.asarray(logits), np.asarray(losses)
        for network, snapshot in np.ndindex(losses.shape[:2]):
            view = Observations(logits[network, snapshot], losses[network, snapshot])
            at_view = start + network, snapshot
            accuracy[name][at_view] = (view.logits[others].argmax(1) == test.labels).mean()
            sides = view.take(members), view.take(others)
            attack_key, *keys = jr.split(attack_key, 1 + len(attacks))
            found = [attack(*sides, key=k) for attack, k in zip(attacks, keys, strict=True)]
            areas[name][at_view] = [(area.value, area.error) for area in found]

    curves = {}
    for name, found in areas.items():
        auc, error = (
            {attack.name: found[..., i, part] for i, attack in enumerate(attacks)}
            for part in (0, 1)
        )
        curves[name] = PrivacyCurve(accuracy[name], auc, error)
    settings = {
        "model": describe_model(model),
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "trained_on": {name: len(coreset.support()[0]) for name, coreset in coresets.items()},
    }
    return PrivacyReport(at, curves, len(members), len(others), settings)


@eqx.filter_jit
def _train_and_observe(
    make_model: MakeModel,
    X: Float[Array, "m *shape"],
    y: Float[Array, "m classes"],
    images: Float[Array, "n *shape"],
    labels: Int[Array, " n"],
    keys: Shaped[Array, "networks ..."],
    at: tuple[int, ...],
    learning_rate: float,
    batch_size: int,
    loss: InnerLoss,
) -> tuple[Float[Array, "networks snapshots n classes"], Float[Array, "networks snapshots n"]]:
    """Logits and losses of all images by networks trained on (X, y), at each snapshot."""
    top = y.max(axis=1)
    height = jnp.mean(top - (y.sum(axis=1) - top) / (y.shape[1] - 1))  # 1 for one-hot - 1/C
    targets = centered_labels(labels, y.shape[1]) * height

    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        model_key, train_key = jr.split(key)
        given: Any = {"learning_rate": learning_rate, "batch_size": batch_size, "loss": loss}
        networks = train_with_snapshots(make_model(model_key), X, y, at=at, key=train_key, **given)
        arrays, static = eqx.partition(networks, eqx.is_array)
        logits = jax.lax.map(lambda a: outputs_of(eqx.combine(a, static), images), arrays)
        losses = jax.vmap(jax.vmap(lambda f, t: loss(f[None], t[None])), (0, None))(logits, targets)
        return logits, losses

    return each_row(one, keys)


def chunks(train: Dataset, size: int, count: int, *, key: PRNGKeyArray) -> tuple[Dataset, ...]:
    """`count` random sets of `size` images that share none: the paper's, of 10,000 each.

    What one network's members are is then independent of another chunk's. Raises `ValueError` for
    more images than there are.
    """
    check_counts(size=size, count=count)
    check_key(key)
    if size * count > len(train):
        raise ValueError(
            f"{count} chunks of {size} images are more than the {len(train)} of {train.name}: ask "
            f"for at most {len(train) // count} images a chunk."
        )
    rng = np.random.default_rng(np.asarray(jr.bits(key, (4,), np.uint32)))
    order = rng.permutation(len(train))[: size * count]
    return tuple(train.subset(np.sort(part)) for part in np.split(order, count))


def _check_attacks(attacks: Sequence[Any]) -> None:
    """Raise `ValueError` unless they are attacks with a name each."""
    for attack in attacks:
        if not isinstance(attack, AbstractAttack):
            advice = "pass values such as privacy.Threshold() or privacy.mlp()."
            raise ValueError(f"attacks holds {attack!r}: {advice}")
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks are {names}: pass at least one, each with its own name.")


def _training_sets(sets: Any, train: Any, test: Any) -> tuple[dict[str, Coreset], Dataset, Dataset]:
    """Every set as a coreset with its preprocessing, and both kinds of images, classes numbered
    alike in all; `ValueError` for those that do not fit."""
    for name, value in (("train", train), ("test", test)):
        if not isinstance(value, Dataset):
            kind = type(value).__name__
            raise ValueError(f"{name} is a {kind}: pass a Dataset or (images, labels).")
    names = train.class_names
    if isinstance(sets, DistillResult):
        names = sets.class_names
        sets = {"real": train, "subset": sets.baseline, "distilled": sets.coreset}
    if not isinstance(sets, Mapping) or not sets:
        raise ValueError(
            f"sets is a {type(sets).__name__}: pass what distill returned, or a dictionary such as "
            "{'real': train, 'distilled': result.coreset}."
        )
    known = [s.preprocess for s in sets.values() if isinstance(s, Coreset)]
    preprocess = known[-1] if known else default_preprocess(train.images)
    count = max(len(names), *(s.num_classes for s in sets.values() if hasattr(s, "num_classes")))
    train = renumbered(train, names, count, what="train")
    test = renumbered(test, names, count, what="test")
    coresets = {}
    for name, value in sets.items():
        if isinstance(value, Dataset):
            if preprocess is None:
                continue  # the coreset without one is refused below
            value = renumbered(value, names, count, what=f"the set {name!r}")
            images = jnp.asarray(apply_in_chunks(preprocess, value.images))
            labels = centered_labels(value.labels, count)
            value = Coreset(images, labels, jnp.zeros(()), preprocess)
        what, advice = f"The set {name!r}", "pass those it was made from."
        if not isinstance(value, Coreset):
            kind = type(value).__name__
            raise ValueError(f"{what} is a {kind}: pass a Coreset or a Dataset.")
        check_coreset(value, what)
        if value.preprocess is None:
            raise ValueError(f"{what} does not carry its preprocessing: set its preprocess field.")
        for which, images in (("train", train), ("test", test)):
            here, there = value.images.shape[1:], images.image_shape
            if there != here:
                raise ValueError(f"{what} has images {here} and {which} has {there}: {advice}")
            here, there = value.num_classes, images.num_classes
            if there > here:
                raise ValueError(f"{what} has {here} classes and {which} has {there}: {advice}")
        coresets[str(name)] = value
    return coresets, train, test
