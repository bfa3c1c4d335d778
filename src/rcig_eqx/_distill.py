"""Algorithm 1 as one call: batches in, a distilled set out."""

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from ._backend import usual_settings
from ._checkpoint import CheckpointFolder
from ._checks import check_counts, check_number
from ._coreset import (
    AbstractParameterization,
    Coreset,
    Initialization,
    check_initialization,
    check_parameterization,
    fold_temperature,
    growing_average,
    real_coreset,
    starting_coreset,
)
from ._devices import (
    check_agreement,
    check_batch_divides,
    leads,
    local,
    make_mesh,
    own_rows,
    place,
    raised_on_all,
    shard_rows,
    shared_batch,
    wait_for_all,
)
from ._lock import releasing
from ._loop import Loop
from ._pool import MakeModel, PoolSchedule
from ._progress import Callback, ProgressBar
from ._result import DistillResult
from ._resume import as_fitted, begin, fitted_arrays, look, run_card
from ._ridge import check_dtype
from ._step import Recipe, State, coreset_optimizer, init
from ._types import Device, called
from .data import (
    AbstractImages,
    AbstractPreprocess,
    DataError,
    Dataset,
    apply_in_chunks,
    default_preprocess,
    sample,
    stream,
    to_state,
)
from .data._adapt import Examples, adapted, is_foreign
from .data._paths import user_path
from .methods import AbstractMethod, default_method
from .methods._method import is_linear_in_labels, scales_predictions, with_parts
from .models import (
    AbstractBatchNetwork,
    AbstractNetwork,
    Network,
    convnet_for,
    describe_network,
)
from .models._architectures import is_ready
from .models._network import check_independent
from .models._training import has_statistics

Train = Dataset | AbstractImages | grain.MapDataset[Any] | Examples | tuple[Any, Any]

_FLIP_UP_TO = 1000  # distilled images, mirrored ones not counted (paper, appendix C)


@releasing()
@usual_settings()
def distill(
    train: Train,
    *,
    images_per_class: int,
    key: PRNGKeyArray,
    method: AbstractMethod | None = None,
    model: MakeModel | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 1000,
    batch_size: int | None = None,
    initialization: Initialization | Coreset | Callable[[PRNGKeyArray], Coreset] = "real",
    parameterization: AbstractParameterization | None = None,
    preprocess: AbstractPreprocess | None = None,
    flip: bool | None = None,
    pool: PoolSchedule | None = None,
    average: Callable[[Array], Array] | None = None,
    fold: bool | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    keep_checkpoints: int = 3,
    resume: bool = False,
    workers: int = 0,
    devices: Sequence[Device] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> DistillResult:
    """Distil a training set into a few synthetic images a class (paper, Algorithm 1).

    **Arguments:**

    - `train`: a `Dataset`, a pair `(images [n h w c], labels [n])`; a set that stays on disk: a
      folder of images as an `ImageFolder`, `Records`, a Hugging Face dataset or a TFDS data
      source; or a grain `MapDataset` of `(image, label)` pairs. The preprocessing is fitted on all
      images, those on disk being read once for it, and on 10,000 of a `MapDataset`; of what is on
      disk, starting images come from some 10,000.
    - `images_per_class`: how many synthetic images each class gets.
    - `key`: source of all randomness; the same key gives the same result.
    - `method`: from `rcig_eqx.methods`; if `None` the head-only gradient for the first half of
      the run, of a long one for 1,000 steps, and the exact `rcig()` from then on.
    - `model`: a function from a key to a network; the paper's `ConvNet` of width 128 if `None`.
      `convnet_for(train.image_shape, train.num_classes, width=32)` makes a smaller one.
    - `optimizer`: of the distilled set, any of optax; `coreset_optimizer()` if `None`.
    - `steps`: outer iterations.
    - `batch_size`: images of an outer batch; if `None` 64 for every 16 distilled ones, at least 64
      and at most the 1,024 of the authors' code, or all there are of a smaller set; less what
      `devices` cannot share equally.
    - `initialization`: `"real"` images, `"noise"`, a `Coreset` such as `earlier.last`, or a
      function from a key to one. Its images are preprocessed; one that carries its preprocessing
      brings it along.
    - `parameterization`: what is optimised in place of images and labels, an
      [`AbstractParameterization`][rcig_eqx.AbstractParameterization].
    - `preprocess`: an `AbstractPreprocess`, such as `data.standardize(images)` or your own; fitted
      on the training images if `None`: standardised if grey, whitened if RGB.
    - `flip`: whether the set also stands for its mirror images; if `None`, for RGB sets of up to
      1,000 images (paper, appendix C), or as the `flip` of a `Coreset` to start from says.
    - `pool`: how the pool's networks are trained and replaced.
    - `average`: weights of the averaged ψ; `growing_average()` if `None`.
    - `fold`: whether the labels returned are multiplied by the learned temperature, as
      [`fold_temperature`][rcig_eqx.fold_temperature]: networks train to a higher accuracy on them.
      If `None`, where it changes no prediction at the inner minimum: the outer loss multiplies
      predictions by τ, as `platt_loss` does, the inner loss is a `SquaredError`, and the network
      is linearised or its body frozen. A method of your own says so by a field `outer_loss`.
    - `checkpoint_dir`: a folder for checkpoints of the whole state; none are kept if `None`.
    - `checkpoint_every`: seconds between two; one more is written when the run ends, unless it is
      killed or abandoned. 0 is after every step.
    - `keep_checkpoints`: how many of the newest stay in the folder.
    - `resume`: go on from the newest valid checkpoint there, or start if there is none. The run
      ends in the same bytes as one that was never interrupted, its `seconds` aside; on another
      number of devices, cores or threads, or by other versions, it warns that it does not. Other
      source of your own functions is a warning, too. More `steps` may be asked for; a default
      `method` stays the one of as many steps as were asked for first.
    - `workers`: processes that read a set on disk ahead; threads of this one do if 0. The batches
      are the same. A script that asks for workers guards its main part by
      `if __name__ == "__main__"`.
    - `devices`: those to share the outer batch, and the networks of a step where
      `pool=PoolSchedule(networks_per_step=...)` asks for several; JAX's default one if `None`.
      `jax.devices()` are all of this process, and after `jax.distributed.initialize()` all of
      every process: see below.
    - `callbacks`: functions of a `Progress`, called after every step; `True` ends the run.
    - `progress`: whether to show a progress bar.

    **Returns:** a `DistillResult`. Ctrl-C, SIGTERM or SIGHUP ends the run after the present step
    and returns what there is, which `result.interrupted` tells; the program goes on from there.
    Twice abandons it, without a further checkpoint.

    **Several processes** each make this call, with the same arguments and `devices=jax.devices()`.
    Each reads its own rows of every batch, and all return the same result; process 0 alone shows
    progress, warns and writes checkpoints, in a folder that all can read. Callbacks run on all of
    them. Ctrl-C in one, or a callback's `True`, ends the run of all after one more step. A process
    that dies, or is abandoned by a second Ctrl-C, leaves the others waiting in their next step
    until JAX finds the connection closed, at once or when its heartbeat times out; then they end
    with its error.

    Raises `ValueError` before any work starts for input that cannot be distilled, for a folder
    that holds another run, `BlockingIOError` for one that another run is writing to, and `OSError`
    for one that cannot be written or has no room.
    """
    check_initialization(initialization)
    check_counts(images_per_class=images_per_class, steps=steps, keep_checkpoints=keep_checkpoints)
    if batch_size is not None:
        check_counts(batch_size=batch_size)
    check_number("checkpoint_every", checkpoint_every, lambda s: s >= 0, "seconds, at least 0")
    check_key(key)
    if resume and checkpoint_dir is None:
        raise ValueError("resume=True needs the checkpoint_dir of the run to go on with.")
    _check_arguments(
        train, method, optimizer, parameterization, preprocess, pool, average, callbacks
    )
    flip, fold = _yes_or_no("flip", flip), _yes_or_no("fold", fold)
    coreset_key, noise_key, init_key, stream_key = jr.split(key, 4)
    seed = int(jr.bits(stream_key, dtype=jnp.uint32))
    train = Dataset.from_arrays(*train) if isinstance(train, tuple) else adapted(train)
    images_per_class, steps = int(images_per_class), int(steps)
    mesh = None
    if devices is not None:
        mesh = make_mesh(devices, networks_per_step=(pool or PoolSchedule()).networks_per_step)
    if batch_size is not None:
        batch_size = _check_batch_size(int(batch_size), len(train), mesh)
    if isinstance(train, Dataset):
        seen = train
    else:
        seen = sample(train, 10_000, at_least=images_per_class, seed=seed)
    if seen.num_classes < 2:
        raise ValueError("train has one class: pass images of two or more, to tell apart.")
    if batch_size is None:
        default = min(default_batch_size(images_per_class * seen.num_classes), len(train))
        batch_size = _check_batch_size(shared_batch(mesh, default), len(train), mesh)
    given = initialization(noise_key) if callable(initialization) else initialization
    if isinstance(given, Coreset) and given.preprocess is not None:
        if preprocess is not None and not eqx.tree_equal(preprocess, given.preprocess):
            raise ValueError(
                "initialization carries another preprocessing than preprocess=: leave one out."
            )
        preprocess = given.preprocess
    checkpoints, found = None, None
    if checkpoint_dir is not None:
        checkpoints = CheckpointFolder(
            user_path(checkpoint_dir), checkpoint_every, keep_checkpoints, writes=leads(mesh)
        )
        with raised_on_all(mesh):
            found = look(checkpoints, resume=resume)
    preprocess = as_fitted(found, preprocess, seen.images[:8])
    if preprocess is None:
        on_disk = isinstance(train, AbstractImages)
        preprocess = default_preprocess(
            train if on_disk else seen, progress=on_disk and progress and leads(mesh)
        )
    check_preprocess(preprocess, seen.images[:2])
    if flip is None and isinstance(given, Coreset):
        flip = given.flip
    elif flip is None:
        flip = seen.image_shape[2] == 3 and images_per_class * seen.num_classes <= _FLIP_UP_TO

    baseline = real_coreset(seen, images_per_class, preprocess, flip=flip, key=coreset_key)
    draws = _further_draws(seen, baseline, preprocess, key=coreset_key)
    start = starting_coreset(given, baseline, key=noise_key)
    model = model or convnet_for(seen.image_shape, seen.num_classes)
    check_model(model, baseline)
    decoded = check_parameterization(parameterization, start) if parameterization else start
    for part in with_parts(method) if method is not None else ():
        check_method(part, decoded, batch_size)
    if checkpoints is not None:
        with raised_on_all(mesh):
            checkpoints.prepare()
    asked_first = found[0]["steps"] if found else steps
    recipe = Recipe(
        method or default_method(asked_first),
        model,
        optimizer or coreset_optimizer(),
        pool or PoolSchedule(),
        average or growing_average(),
        parameterization,
    )
    if fold is None:
        fold = all(
            is_linear_in_labels(part) and scales_predictions(part, decoded, batch_size)
            for part in with_parts(recipe.method)
        )
    settings = {
        "dataset": seen.name,
        "images_per_class": images_per_class,
        "steps": steps,
        "batch_size": batch_size,
        "initialization": initialization if isinstance(initialization, str) else "custom",
        "parameterization": describe(parameterization) if parameterization else None,
        "bytes": sum(x.nbytes for x in jax.tree.leaves(recipe.encode(start))),
        "model": describe_model(recipe.make_model),
        "flip": flip,
        "fold": fold,
        "preprocess": type(preprocess).__name__,
        "key": np.asarray(jr.key_data(key)).tolist(),
        "pool": describe(recipe.schedule),
        "optimizer": called(recipe.optimizer.update),
        "average": called(recipe.average),
    }

    asked = {"images": len(train), "method": describe(recipe.method)}
    asked["steps there"] = found[1]["history.seconds"].size if found else 0
    check_agreement(mesh, settings | asked)

    def result(state: State, history: dict[str, list[float]]) -> DistillResult:
        final_psi = local((state.average, state.coreset), mesh)
        final = fold_temperature if fold else lambda c: c
        coreset, last, first = (
            eqx.tree_at(
                lambda c: c.preprocess,
                final(jax.tree.map(jnp.copy, c)),  # the next step takes the state's memory over
                preprocess,
                is_leaf=lambda x: x is None,
            )
            for c in (*map(recipe.decode, final_psi), baseline)
        )
        psi = jax.tree.map(jnp.copy, final_psi[0]) if parameterization else None
        done = {"steps_done": int(state.step), "method": describe(state.recipe.method)}
        done["versions"] = versions()
        arrays = {name: np.asarray(values, np.float32) for name, values in history.items()}
        names, recipe_of = seen.class_names, settings | done
        return DistillResult(coreset, last, first, names, recipe_of, arrays, psi, draws)

    state, history = init(start, recipe, key=init_key), {}
    card = {}
    if checkpoints is not None:
        batch = jax.ShapeDtypeStruct((batch_size, *seen.image_shape), jnp.float32)
        checkpoints.kept = fitted_arrays(preprocess)
        settings_of_run = settings | {"method": describe(recipe.method)}
        card = run_card(settings_of_run, train, seen, state, preprocess)
        card |= {"steps": asked_first, "devices": mesh.size if mesh else 1}
        with raised_on_all(mesh):
            state, history = begin(checkpoints, found, card, state, batch)
            if int(state.step) > steps:
                raise ValueError(
                    f"{checkpoint_dir} has {int(state.step)} steps already: ask for at least as "
                    "many."
                )
    first, state = int(state.step), place(state, mesh) if mesh else state
    batches = _batches(train, seen, preprocess, mesh, batch_size, seed, first, workers)
    with ProgressBar(enabled=progress and leads(mesh)) as bar:
        if resume and found is None:
            bar.note(f"No checkpoint in {checkpoint_dir} yet: starting at the beginning.")
        loop = Loop(batches, steps, result, callbacks, bar, checkpoints, card, mesh, batch_size)
        state, history = loop.run(state, history)
    wait_for_all(mesh)  # the last checkpoint is there for whoever resumes next
    return result(state, history)


def _batches(
    train: Any,
    seen: Dataset,
    preprocess: AbstractPreprocess,
    mesh: Mesh | None,
    batch_size: int,
    seed: int,
    start: int,
    workers: int,
) -> Iterator[tuple[Any, Any]]:
    """Preprocessed batches from number `start` on; sets in memory are preprocessed at once."""
    rows = own_rows(mesh, batch_size) if mesh else None
    if isinstance(train, Dataset) and not isinstance(train.images, np.memmap):
        images = apply_in_chunks(preprocess, train.images)
        return stream((images, train.labels), batch_size, seed=seed, start=start, rows=rows)
    raw = stream(train, batch_size, seed=seed, start=start, workers=workers, rows=rows)
    if mesh:  # the preprocessing once, not with every batch
        preprocess = place(preprocess, mesh)
        raw = ((shard_rows(x, mesh, batch_size), y) for x, y in raw)
    return _preprocessed(raw, preprocess, seen.num_classes)


def _preprocessed(
    batches: Iterator[Any], preprocess: AbstractPreprocess, num_classes: int
) -> Iterator[tuple[Array, np.ndarray]]:
    """Batches of a set on disk, preprocessed on the device; their labels are seen here first."""
    transform = eqx.filter_jit(preprocess)
    for images, labels in batches:
        labels = np.asarray(labels)  # a reading process sends grain's own kind of array
        if labels.max() >= num_classes:
            raise DataError(
                f"A label is {labels.max()}, but the images looked at before the run had "
                f"{num_classes} classes: pass a Dataset or a set on disk that names them all."
            )
        if labels.min() < 0:
            raise DataError(f"A label is {labels.min()}: leave out images without a class first.")
        yield transform(images), labels


def _yes_or_no(name: str, value: Any) -> bool | None:
    """A Python bool or `None`; `ValueError` for anything else."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {value!r}: pass True, False or None.")
    return None if value is None else bool(value)


def check_key(key: Any) -> None:
    """Raise `ValueError` for what is not one key, new-style or old."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = getattr(key, "dtype", None) == np.uint32
    if not ((typed and key.ndim == 0) or (raw and key.ndim == 1)):
        raise ValueError(f"key is {key!r}: pass one key, such as jax.random.key(0).")


def _check_arguments(
    train: Any,
    method: Any,
    optimizer: Any,
    parameterization: Any,
    preprocess: Any,
    pool: Any,
    average: Any,
    callbacks: Any,
) -> None:
    """Raise `ValueError` for an argument of the wrong kind, and name the right one."""
    if not (
        isinstance(train, Dataset | AbstractImages | grain.MapDataset)
        or (isinstance(train, tuple) and len(train) == 2)
        or is_foreign(train)
    ):
        raise ValueError(
            f"train is a {type(train).__name__}: pass a Dataset, (images, labels), an ImageFolder, "
            "Records, or a grain.MapDataset."
        )
    for name, value, right, such_as in (
        ("method", method, AbstractMethod, "methods.rcig()"),
        ("optimizer", optimizer, optax.GradientTransformation, "coreset_optimizer(0.01)"),
        ("parameterization", parameterization, AbstractParameterization, "your subclass of it"),
        ("preprocess", preprocess, AbstractPreprocess, "data.zca(images)"),
        ("pool", pool, PoolSchedule, "PoolSchedule(size=30)"),
    ):
        if value is not None and not isinstance(value, right):
            raise ValueError(f"{name} is {value!r}: pass a value such as {such_as}.")
    if average is not None:
        try:
            jax.eval_shape(average, jax.ShapeDtypeStruct((), jnp.int32))
        except TypeError as error:
            raise ValueError(
                f"average is {getattr(average, '__name__', average)}: pass a function from the "
                "iterates so far to the weight of the next, such as ema(0.99)."
            ) from error
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ValueError(f"callbacks is {callbacks!r}: pass a sequence of functions.")


def check_model(make_model: MakeModel, coreset: Coreset) -> None:
    """Raise `ValueError` unless the function makes a network for these images and classes."""
    if isinstance(make_model, AbstractNetwork) or not callable(make_model):
        raise ValueError(
            f"model is a {type(make_model).__name__}: pass a function from a key to a network, "
            "such as convnet_for(train.image_shape, train.num_classes)."
        )
    try:
        model = eqx.filter_eval_shape(make_model, jr.key(0))
    except TypeError as error:
        raise ValueError(
            f"model cannot be called with a key ({error}): pass a function from a key to a "
            "network, such as convnet_for(train.image_shape, train.num_classes)."
        ) from error
    if not isinstance(model, AbstractNetwork):
        raise ValueError(
            f"model= made a {type(model).__name__}; it must be a function from a key to an "
            "rcig_eqx.models.AbstractNetwork, such as convnet_for(...), or a models.Network made "
            "of your own module."
        )
    if has_statistics(model) and not isinstance(model, AbstractBatchNetwork):
        raise ValueError(
            f"{type(model).__name__} stores statistics of batches, which it must know to move: "
            "make it an rcig_eqx.models.AbstractBatchNetwork."
        )
    try:
        outputs = eqx.filter_eval_shape(model, coreset.images)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The network does not take images {coreset.images.shape[1:]}: build it for their "
            f"size and channels. It says: {str(error).splitlines()[0]}"
        ) from error
    if not (is_ready(model) or isinstance(model, Network)):
        check_independent(make_model(jr.key(0)), coreset.images[0])
    if outputs.shape[:-1] != coreset.labels.shape[:1]:
        raise ValueError(
            f"The network gives outputs of shape {outputs.shape} for {len(coreset.images)} images: "
            "it must give one row per image, [n classes]."
        )
    if outputs.shape != coreset.labels.shape:
        raise ValueError(
            f"The network gives {outputs.shape[-1]} outputs for {coreset.num_classes} classes: "
            f"build it with num_classes={coreset.num_classes}."
        )


_DRAWS, _DRAWS_BYTES = 5, 2**24


def _further_draws(
    seen: Dataset, baseline: Coreset, preprocess: AbstractPreprocess, *, key: PRNGKeyArray
) -> np.ndarray | None:
    """Images of further random draws such as the baseline: four, or fewer where they are large or
    a class has too few images for draws to differ."""
    each = len(baseline.images) // seen.num_classes
    smallest = int(np.bincount(seen.labels, minlength=seen.num_classes).min())
    count = min(_DRAWS - 1, smallest // each - 1, _DRAWS_BYTES // baseline.images.nbytes)
    draws = [real_coreset(seen, each, preprocess, key=k).images for k in jr.split(key, count)]
    return np.array(draws, np.float32) if draws else None


def check_preprocess(preprocess: AbstractPreprocess, images: np.ndarray) -> None:
    """Raise `ValueError` unless a preprocessing keeps the images' shape and can be saved."""
    to_state(preprocess)
    once = preprocess(images)
    for name, made in (("preprocess", once), ("preprocess.inverse", preprocess.inverse(once))):
        if made.shape != images.shape or made.dtype != jnp.float32:
            raise ValueError(
                f"{name} made {made.dtype} images {made.shape} of {images.shape}: it must make "
                "float32 ones of the same shape."
            )


def default_batch_size(distilled: int) -> int:
    """The outer batch for so many distilled images, mirrored ones not counted.

    A step passes through the distilled set many times and through the batch a few: a larger one
    costs little beside it, and takes most of the gradient's noise away. Measured for 100 distilled
    images, head-only (`docs/results`); the slope and the ends are by arithmetic.
    """
    return 64 * min(max(distilled // 16, 1), 16)


def _check_batch_size(batch_size: int, images: int, mesh: Mesh | None) -> int:
    if batch_size > images:
        raise ValueError(f"batch_size is {batch_size}: choose it in 1..{images}, the images.")
    if mesh is not None:
        check_batch_divides(mesh, batch_size)
    return batch_size


def check_method(method: AbstractMethod, coreset: Coreset, batch_size: int) -> None:
    """Raise `ValueError` for losses that do not make one number each, or a dtype that JAX lacks.

    Of a method alone, its parts left out.
    """
    check_dtype(getattr(method, "dtype", None))
    b = jax.ShapeDtypeStruct((batch_size, coreset.num_classes), coreset.labels.dtype)
    n = jax.ShapeDtypeStruct(coreset.labels.shape, coreset.labels.dtype)
    outer = "(predictions [b classes], targets [b classes], log_temperature)"
    inner = "(predictions [n classes], labels [n classes])"
    for name, arguments, takes in (
        ("outer_loss", (b, b, coreset.log_temperature), outer),
        ("inner_loss", (n, n), inner),
    ):
        loss, wanted = getattr(method, name, None), f"pass a function {takes}"
        if loss is None:
            continue
        try:
            value = eqx.filter_eval_shape(loss, *arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be called ({error}): {wanted}.") from error
        if (shape := getattr(value, "shape", None)) != ():
            what = type(value).__name__ if shape is None else f"an array {shape}"
            raise ValueError(f"{name} returned {what}, not one number: {wanted} that does.")


def describe_model(make_model: MakeModel) -> dict[str, Any]:
    """A network in plain values, enough to build a ready one again."""
    return describe_network(eqx.filter_eval_shape(make_model, jr.key(0)))


def describe(strategy: eqx.Module) -> dict[str, Any]:
    """A strategy in plain values, for people to read."""

    def plain(value: Any) -> Any:
        if isinstance(value, int | float | str | bool | None):
            return value
        if isinstance(value, jax.Array) and value.ndim == 0:
            return value.item()
        if isinstance(value, jax.Array):
            return f"{value.dtype}{list(value.shape)}"
        if isinstance(value, eqx.Module):
            return describe(value)
        return getattr(value, "__name__", type(value).__name__)

    values = {name: plain(value) for name, value in vars(strategy).items() if name != "tally"}
    return {"name": getattr(strategy, "form", type(strategy).__name__), **values}


def versions() -> dict[str, str]:
    """The versions of what computes."""
    names = ("rcig-eqx", "jax", "equinox", "optax", "lineax")
    return {name: importlib.metadata.version(name) for name in names}
