"""`distill`'s arguments resolved into the plan of a run, and every complaint about them."""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from ._augment import as_augmentation, check_augmentation
from ._balance import Balance, balance, few_images
from ._checks import ArgumentError, check_counts, check_flags, check_key
from ._coreset import Coreset
from ._describe import describe, described
from ._losses import platt_loss
from ._recipe import Optimizer, Recipe, default_batch_size
from ._types import Device
from .data import (
    AbstractImages,
    AbstractPreprocess,
    Dataset,
    default_preprocess,
    sample,
    to_state,
)
from .data._adapt import Foreign, adapted, is_foreign
from .data._dataset import noun
from .initializers import INITIALIZERS, AbstractInitializer, Given, check_start, real_coreset
from .methods import AbstractMethod, default_method, frepo
from .models import MakeModel
from .models._architectures import default_network
from .models._check import check_model, describe_model
from .parameterizations import Bits, check_parameterization
from .parameterizations._budget import bits_allowed, check_storage, spend
from .run._checkpoint import CheckpointFolder, Checkpoints
from .run._devices import (
    check_agreement,
    check_batch_divides,
    leads,
    make_mesh,
    raised_on_all,
    shared_batch,
)
from .run._progress import Callback
from .run._resume import Found, as_fitted, look

Train = Dataset | AbstractImages | grain.MapDataset[Any] | Foreign | tuple[Any, Any]

# Of the many small images in a storage budget, a step works on part of the real ones and of the
# distilled ones: more steps for the same time (`benchmarks/storage.py`).
_STORED_BATCH, _STORED_POOL_BATCH = 256, 64
_FLIP_UP_TO = 1000  # distilled images, mirrored ones not counted (paper, appendix C)


@dataclasses.dataclass(frozen=True)
class Asked:
    """The arguments of `distill`."""

    train: Train
    images_per_class: int | None
    storage: str | Bits | None
    key: PRNGKeyArray
    method: AbstractMethod | None
    model: MakeModel | None
    steps: int
    batch_size: int | None
    initialization: str | Coreset | AbstractInitializer
    preprocess: AbstractPreprocess | None
    optimizer: Optimizer | None
    recipe: Recipe | None
    checkpoint_dir: str | os.PathLike[str] | Checkpoints | None
    resume: bool
    devices: Sequence[Device] | None
    callbacks: Sequence[Callback]
    progress: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run with nothing left to choose.

    - `train`: the training set, and `seen` the part of it that is in memory.
    - `recipe`: the strategies.
    - `start`: the set that the run starts from; `baseline`: as many random real images; `draws`:
      further ones.
    - `preprocess`: fitted.
    - `seed`: of the order of the batches; `init_key`: of the first state.
    - `balance`: of the classes, in the set and in outer batches.
    - `mesh`: of several devices, if there are.
    - `folder`: where checkpoints are kept, if anywhere; `found`: the one to go on from.
    - `asked_first`: the steps that the run was asked for when it began.
    - `settings`: what the result records.
    - `callbacks`, `progress`: as asked.
    """

    train: Any
    seen: Dataset
    recipe: Recipe
    start: Coreset
    baseline: Coreset
    draws: np.ndarray | None
    preprocess: AbstractPreprocess
    steps: int
    batch_size: int
    fold: bool
    seed: int
    init_key: PRNGKeyArray
    balance: Balance
    mesh: Mesh | None
    folder: CheckpointFolder | None
    found: Found | None
    asked_first: int
    settings: dict[str, Any]
    callbacks: Sequence[Callback]
    progress: bool


def resolve(asked: Asked) -> Plan:
    """The plan of a run. Raises `ValueError` for what cannot be distilled, before any work."""
    _check_kinds(asked)
    initializer, recipe = _initializer(asked.initialization), _recipe(asked)
    steps = int(asked.steps)
    coreset_key, noise_key, init_key, stream_key = jr.split(asked.key, 4)
    seed = int(jr.bits(stream_key, dtype=jnp.uint32))
    train: Any = asked.train
    train = Dataset.from_arrays(*train) if isinstance(train, tuple) else adapted(train)
    networks = recipe.pool.networks_per_step
    mesh = None if asked.devices is None else make_mesh(asked.devices, networks_per_step=networks)
    if recipe.batch_size is not None:
        check_batch_size(recipe.batch_size, len(train), mesh)
    seen, recipe, images_per_class = _size(asked, train, recipe, seed)
    count = images_per_class * seen.num_classes
    classes = balance(train, seen, recipe.balanced)
    batch_size = recipe.batch_size
    if batch_size is None:
        usual = default_batch_size(count) if asked.storage is None else _STORED_BATCH
        batch_size = shared_batch(mesh, min(usual, len(train)))
        check_batch_size(batch_size, len(train), mesh)
    folder, found = _folder(asked, mesh)
    preprocess = _preprocess(asked, initializer, train, seen, mesh, found)
    flip = initializer.flip if recipe.flip is None else recipe.flip
    if flip is None:
        flip = len(seen.image_shape) == 3 == seen.image_shape[-1] and count <= _FLIP_UP_TO
    baseline = real_coreset(seen, images_per_class, preprocess, flip=bool(flip), key=coreset_key)
    draws = _further_draws(seen, baseline, preprocess, key=coreset_key)
    start = check_start(initializer(seen, baseline, preprocess, key=noise_key), baseline)
    model = recipe.model or default_network(seen.image_shape, seen.num_classes)
    check_model(model, baseline)
    decoded = check_parameterization(recipe.parameterization, start)
    asked_first = found[0]["steps"] if found else steps
    method = recipe.method or default_method(asked_first)
    method.check(decoded, batch_size)
    augment = as_augmentation(recipe.augment, seen.image_shape)
    if augment is not None:
        check_augmentation(augment, decoded.images.shape)
    fold = method.folds if recipe.fold is None else recipe.fold
    recipe = dataclasses.replace(
        recipe, method=method, model=model, fold=bool(fold), batch_size=batch_size,
        augment=augment, balanced=classes.balanced,
    )  # fmt: skip
    settings = _settings(asked, images_per_class, recipe, start, seen, preprocess)
    same = {"images": len(train), "method": describe(method)}
    same["steps there"] = there = found[1]["history.seconds"].size if found else 0
    check_agreement(mesh, settings | same)
    if folder is not None:
        with raised_on_all(mesh):
            folder.prepare()
        if there > steps:
            raise ArgumentError(
                "steps",
                f"is {steps}, and {folder.folder} has {there} already: ask for at least as many.",
            )
    if leads(mesh) and (said := few_images(seen, images_per_class)):
        warnings.warn(said, stacklevel=5)
    return Plan(
        train, seen, recipe, start, baseline, draws, preprocess, steps, batch_size, bool(fold),
        seed, init_key, classes, mesh, folder, found, asked_first, settings, asked.callbacks,
        asked.progress,
    )  # fmt: skip


def _size(asked: Asked, train: Any, recipe: Recipe, seed: int) -> tuple[Dataset, Recipe, int]:
    """What is in memory of the training set, how a budget is stored, and the images per class."""

    known, count = train, asked.images_per_class
    if not isinstance(train, Dataset | AbstractImages):
        known = sample(train, 10_000, at_least=1, seed=seed)
    if known.num_classes < 2:
        raise ArgumentError("train", "has one class: pass two or more, to tell apart.")
    if asked.storage is not None:
        smallest = min(int(np.sum(known.labels == c)) for c in range(known.num_classes))
        shape, given = known.image_shape, recipe.parameterization
        stored, count = spend(asked.storage, given, shape, known.num_classes, smallest)
        few = recipe.pool.batch_size or _STORED_POOL_BATCH
        pool = dataclasses.replace(recipe.pool, batch_size=few)
        method = recipe.method or frepo(outer_loss=platt_loss)
        recipe = dataclasses.replace(recipe, parameterization=stored, pool=pool, method=method)
    count = int(count or 1)
    if isinstance(known, AbstractImages):
        known = sample(known, 10_000, at_least=count, seed=seed)
    return known, recipe, count


def _check_kinds(asked: Asked) -> None:
    """Raise `ValueError` for an argument of the wrong kind, and name the right one."""
    train = asked.train
    if not (
        isinstance(train, Dataset | AbstractImages | grain.MapDataset)
        or (isinstance(train, tuple) and len(train) == 2)
        or is_foreign(train)
    ):
        raise ArgumentError(
            "train",
            f"is a {type(train).__name__}: pass a Dataset, (images, labels), an ImageFolder, "
            "Records, a data set of Hugging Face or PyTorch, or a grain.MapDataset.",
        )
    if (asked.images_per_class is None) == (asked.storage is None):
        both = "is missing" if asked.storage is None else "and storage both say how much to store"
        raise ArgumentError(
            "images_per_class", f"{both}: pass one of images_per_class and storage."
        )
    if asked.storage is not None:
        check_storage(asked.storage)
    counts = {"images_per_class": asked.images_per_class, "steps": asked.steps}
    check_counts(**{name: count for name, count in counts.items() if count is not None})
    check_key(asked.key)
    for name, right, such_as in (
        ("recipe", Recipe, "presets.paper()"),
        ("preprocess", AbstractPreprocess, "data.zca(images)"),
    ):
        value = getattr(asked, name)
        if value is not None and not isinstance(value, right):
            raise ArgumentError(name, f"is {value!r}: pass a value such as {such_as}.")
    if not isinstance(asked.callbacks, Sequence) or not all(map(callable, asked.callbacks)):
        raise ArgumentError("callbacks", f"is {asked.callbacks!r}: pass a sequence of functions.")


def _recipe(asked: Asked) -> Recipe:
    """The recipe, with what stands beside it in its place."""
    given = {name: getattr(asked, name) for name in ("method", "model", "optimizer", "batch_size")}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(asked.recipe or Recipe(), **given)


def _initializer(given: Any) -> AbstractInitializer:
    if isinstance(given, AbstractInitializer):
        return given
    if isinstance(given, Coreset):
        return Given(given)
    if not isinstance(given, str):
        raise ArgumentError(
            "initialization",
            f"is {given!r}: pass a name, a Coreset, or an AbstractInitializer such as noise().",
        )
    return INITIALIZERS.find("initialization", given)()


def _kept(asked: Asked) -> Checkpoints | None:
    """Where and how checkpoints are kept."""
    check_flags(resume=asked.resume)
    given = asked.checkpoint_dir
    if given is None:
        if asked.resume:
            raise ArgumentError("resume", "is True without checkpoint_dir: name the run's folder.")
        return None
    given = given if isinstance(given, Checkpoints) else Checkpoints(given)
    return dataclasses.replace(given, resume=given.resume or asked.resume)


def _folder(asked: Asked, mesh: Mesh | None) -> tuple[CheckpointFolder | None, Found | None]:
    """Where checkpoints are kept, and the one to go on from."""
    kept = _kept(asked)
    if kept is None:
        return None, None
    folder = kept.opened(writes=leads(mesh))
    with raised_on_all(mesh):
        return folder, look(folder, resume=kept.resume)


def _preprocess(
    asked: Asked,
    initializer: AbstractInitializer,
    train: Any,
    seen: Dataset,
    mesh: Mesh | None,
    found: Found | None,
) -> AbstractPreprocess:
    """The preprocessing a run began with, that asked for or of its start, or one fitted."""
    preprocess, given = asked.preprocess, initializer.preprocess
    if given is not None:
        if preprocess is not None and not eqx.tree_equal(preprocess, given):
            raise ArgumentError(
                "initialization", "carries another preprocessing than preprocess: leave one out."
            )
        preprocess = given
    preprocess = as_fitted(found, preprocess, seen.images[:8])
    if preprocess is None:
        on_disk = isinstance(train, AbstractImages)
        shown = on_disk and asked.progress and leads(mesh)
        preprocess = default_preprocess(train if on_disk else seen, progress=shown)
    check_preprocess(preprocess, seen.images[:2])
    return preprocess


_DRAWS, _DRAWS_BYTES = 5, 2**24


def _further_draws(
    seen: Dataset, baseline: Coreset, preprocess: AbstractPreprocess, *, key: PRNGKeyArray
) -> np.ndarray | None:
    """Images of further random draws such as the baseline: four, or fewer where they are large or
    a class has too few images for draws to differ."""
    each = len(baseline.images) // seen.num_classes
    smallest = int(np.bincount(seen.labels, minlength=seen.num_classes).min())
    count = min(_DRAWS - 1, smallest // each - 1, _DRAWS_BYTES // baseline.images.nbytes)
    count = max(0, count)
    draws = [real_coreset(seen, each, preprocess, key=k).images for k in jr.split(key, count)]
    return np.array(draws, np.float32) if draws else None


def check_preprocess(preprocess: AbstractPreprocess, images: np.ndarray) -> None:
    """Raise `ValueError` unless a preprocessing keeps the images' shape and can be saved."""
    to_state(preprocess)
    once = preprocess(images)
    for name, made in (("preprocess", once), ("preprocess.inverse", preprocess.inverse(once))):
        if made.shape != images.shape or made.dtype != jnp.float32:
            raise ArgumentError(
                name,
                f"made {made.dtype} {noun(images.shape[1:])} {made.shape} of {images.shape}: it "
                "must make float32 ones of the same shape.",
            )


def check_batch_size(batch_size: int, images: int, mesh: Mesh | None) -> None:
    """Raise `ValueError` for a batch larger than the set, or that devices cannot share."""
    if batch_size > images:
        raise ArgumentError(
            "batch_size", f"is {batch_size}: choose it in 1..{images}, the training set."
        )
    if mesh is not None:
        check_batch_divides(mesh, batch_size)


def _settings(
    asked: Asked,
    images_per_class: int,
    recipe: Recipe,
    start: Coreset,
    seen: Dataset,
    preprocess: AbstractPreprocess,
) -> dict[str, Any]:
    """What a result records of a run, in plain values."""
    _, model = recipe.chosen()
    given, psi = asked.initialization, recipe.parameterization.encode(start)
    bits = recipe.parameterization.bits(psi)
    per_class = -(-bits // seen.num_classes)
    spent = {}
    if asked.storage is not None:
        allowed = bits_allowed(asked.storage, seen.image_shape, seen.num_classes)
        spent["storage"] = (
            f"{images_per_class} images per class as {recipe.parameterization}, {per_class:,} of "
            f"{allowed:,} bits per class"
        )
    if recipe.augment is not None:
        spent["augment"] = described(recipe.augment)
    spent |= {"balanced": True} if recipe.balanced else {}  # as earlier versions recorded
    return spent | {
        "dataset": seen.name,
        "images_per_class": images_per_class,
        "steps": int(asked.steps),
        "batch_size": recipe.batch_size,
        "initialization": given if isinstance(given, str) else described(type(given)),
        "parameterization": describe(recipe.parameterization),
        "bytes": sum(x.nbytes for x in jax.tree.leaves(psi)),
        "bits": bits,
        "bits_per_class": per_class,
        "model": describe_model(model),
        "flip": start.flip,
        "fold": recipe.fold,
        "preprocess": type(preprocess).__name__,
        "key": np.asarray(jr.key_data(asked.key)).tolist(),
        "pool": describe(recipe.pool),
        "optimizer": described(recipe.optimizer),
        "average": described(recipe.average),
    }
