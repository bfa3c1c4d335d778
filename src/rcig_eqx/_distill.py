"""Algorithm 1 as one call: batches in, a distilled set out."""

import contextlib
import functools
import importlib.metadata
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from ._backend import compiler_options
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
from ._pool import MakeModel, PoolSchedule
from ._progress import Callback, Progress, ProgressBar
from ._result import DistillResult
from ._step import Recipe, State, coreset_optimizer, init, step, tune
from .data import (
    AbstractPreprocess,
    Dataset,
    ImageFolder,
    apply_in_chunks,
    default_preprocess,
    sample,
    stream,
    to_state,
)
from .methods import AbstractAdaptiveMethod, AbstractMethod, default_method
from .models import AbstractNetwork, ConvNet, Network, check_independent, convnet_for

Train = Dataset | ImageFolder | grain.MapDataset | tuple[Any, Any]

_BATCH_SIZE = 64
_FLIP_UP_TO = 1000  # distilled images, mirrored ones not counted (paper, appendix C)
_GIVE_UP_AFTER = 10  # steps in a row without a finite hypergradient


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
    fold: bool = True,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> DistillResult:
    """Distil a training set into a few synthetic images a class (paper, Algorithm 1).

    **Arguments:**

    - `train`: a `Dataset`, a pair `(images [n h w c], labels [n])`, a folder of images as an
      `ImageFolder`, or a grain `MapDataset` of `(image, label)` pairs. The last two stay on disk;
      the preprocessing is fitted on, and starting images come from, up to 10,000 of theirs.
    - `images_per_class`: how many synthetic images each class gets.
    - `key`: source of all randomness; the same key gives the same result.
    - `method`: from `rcig_eqx.methods`; if `None` the head-only gradient for the first half of
      the run, of a long one for 1,000 steps, and the exact `rcig()` from then on.
    - `model`: a function from a key to a network; the paper's `ConvNet` of width 128 if `None`.
      `convnet_for(train.image_shape, train.num_classes, width=32)` makes a smaller one.
    - `optimizer`: of the distilled set, any of optax; `coreset_optimizer()` if `None`.
    - `steps`: outer iterations.
    - `batch_size`: images of an outer batch; 64, or all there are of a smaller set, if `None`.
    - `initialization`: `"real"` images, `"noise"`, a `Coreset` such as `earlier.last`, or a
      function from a key to one. Its images are preprocessed; one that carries its preprocessing
      brings it along.
    - `parameterization`: what is optimised in place of images and labels, an
      [`AbstractParameterization`][rcig_eqx.AbstractParameterization].
    - `preprocess`: an `AbstractPreprocess`, such as `data.standardize(images)` or your own; fitted
      on the training images if `None`: standardised if grey, whitened if RGB.
    - `flip`: whether the set also stands for its mirror images; if `None`, for RGB sets of up to
      1,000 images (paper, appendix C).
    - `pool`: how the pool's networks are trained and replaced.
    - `average`: weights of the averaged ψ; `growing_average()` if `None`.
    - `fold`: whether the labels returned are multiplied by the learned temperature, as
      [`fold_temperature`][rcig_eqx.fold_temperature]: networks train to a higher accuracy on them.
    - `callbacks`: functions of a `Progress`, called after every step; `True` ends the run.
    - `progress`: whether to show a progress bar.

    **Returns:** a `DistillResult`. Ctrl-C ends the run after the present step and returns what
    there is; press it twice to abandon it.

    Raises `ValueError` before any work starts for input that cannot be distilled.
    """
    check_initialization(initialization)
    check_counts(images_per_class=images_per_class, steps=steps)
    if batch_size is not None:
        check_counts(batch_size=batch_size)
    check_key(key)
    _check_arguments(
        train, method, optimizer, parameterization, preprocess, pool, average, callbacks
    )
    coreset_key, noise_key, init_key, stream_key = jr.split(key, 4)
    seed = int(jr.bits(stream_key, dtype=jnp.uint32))
    train = Dataset.from_arrays(*train) if isinstance(train, tuple) else train
    batch_size = min(_BATCH_SIZE, len(train)) if batch_size is None else batch_size
    images_per_class, steps, batch_size = map(int, (images_per_class, steps, batch_size))
    if batch_size > len(train):
        raise ValueError(f"batch_size is {batch_size}: choose it in 1..{len(train)}, the images.")
    if isinstance(train, Dataset):
        seen = train
    else:
        seen = sample(train, 10_000, at_least=images_per_class, seed=seed)
    given = initialization(noise_key) if callable(initialization) else initialization
    if isinstance(given, Coreset) and given.preprocess is not None:
        if preprocess is not None and not eqx.tree_equal(preprocess, given.preprocess):
            raise ValueError(
                "initialization carries another preprocessing than preprocess=: leave one out."
            )
        preprocess = given.preprocess
    preprocess = preprocess or default_preprocess(seen.images)
    check_preprocess(preprocess, seen.images[:2])
    if flip is None and isinstance(given, Coreset):
        flip = given.flip
    elif flip is None:
        flip = seen.image_shape[2] == 3 and images_per_class * seen.num_classes <= _FLIP_UP_TO

    baseline = real_coreset(seen, images_per_class, preprocess, flip=flip, key=coreset_key)
    start = starting_coreset(given, baseline, key=noise_key)
    recipe = Recipe(
        method or default_method(steps),
        model or convnet_for(seen.image_shape, seen.num_classes),
        optimizer or coreset_optimizer(),
        pool or PoolSchedule(),
        average or growing_average(),
        parameterization,
    )
    decoded = check_parameterization(parameterization, start) if parameterization else start
    check_model(recipe.make_model, baseline)
    check_losses(recipe.method, decoded, batch_size)
    if isinstance(train, Dataset) and not isinstance(train.images, np.memmap):
        images = apply_in_chunks(preprocess, train.images)
        batches = stream((images, train.labels), batch_size, seed=seed)
    else:
        raw = stream(train, batch_size, seed=seed)
        batches = _preprocessed(raw, preprocess, seen.num_classes)

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
        "versions": versions(),
    }

    def result(state: State, history: dict[str, list[float]]) -> DistillResult:
        final = fold_temperature if fold else lambda c: c
        coreset, last, first = (
            eqx.tree_at(
                lambda c: c.preprocess,
                final(jax.tree.map(jnp.copy, c)),  # the next step takes the state's memory over
                preprocess,
                is_leaf=lambda x: x is None,
            )
            for c in (recipe.decode(state.average), recipe.decode(state.coreset), baseline)
        )
        psi = jax.tree.map(jnp.copy, state.average) if parameterization else None
        done = {"steps_done": int(state.step), "method": describe(state.recipe.method)}
        arrays = {name: np.asarray(values, np.float32) for name, values in history.items()}
        return DistillResult(coreset, last, first, seen.class_names, settings | done, arrays, psi)

    state = init(start, recipe, key=init_key)
    with ProgressBar(enabled=progress) as bar:
        state, history = _loop(state, batches, steps, callbacks, bar, result)
    return result(state, history)


@functools.cache  # so that a second run with the very same strategies compiles nothing
def _compiled_step() -> Callable[[Any, State], tuple[State, dict[str, Array]]]:
    return eqx.filter_jit(
        lambda batch, state: step(state, batch),
        donate="all-except-first",
        compiler_options=compiler_options(),  # pyright: ignore[reportCallIssue]
    )


@functools.cache
def _compiled_tune() -> Callable[[Any, State], State]:
    return eqx.filter_jit(
        lambda batch, state: tune(state, batch),
        donate="all-except-first",
        compiler_options=compiler_options(),  # pyright: ignore[reportCallIssue]
    )


def _loop(
    state: State,
    batches: Iterator[Any],
    steps: int,
    callbacks: Sequence[Callback],
    bar: ProgressBar,
    result: Callable[[State, dict[str, list[float]]], DistillResult],
) -> tuple[State, dict[str, list[float]]]:
    """Run the steps. Metrics are read one step late, so that the device never waits for us."""
    history: dict[str, list[float]] = {}
    began = time.perf_counter()
    number = rejected = missed = 0

    def record(number: int, metrics: dict[str, Array]) -> None:
        nonlocal rejected, missed
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        numbers["seconds"] = time.perf_counter() - began
        for name, value in numbers.items():
            history.setdefault(name, []).append(value)
        rejected = rejected + 1 if numbers["rejected"] else 0
        missed += numbers.get("converged") == 0
        bar.update(number, steps, numbers)

    pending: tuple[int, dict[str, Array]] | None = None

    def flush() -> None:
        nonlocal pending
        if pending:
            record(*pending)
        pending = None

    def so_far() -> DistillResult:
        flush()
        return result(state, history)

    with _interruptible() as interrupted:
        for number in range(1, steps + 1):
            images, labels = next(batches)
            batch = (jnp.asarray(images), jnp.asarray(labels, jnp.int32))
            if number == 1 and isinstance(state.recipe.method, AbstractAdaptiveMethod):
                state = _compiled_tune()(batch, state)
            state, metrics = _compiled_step()(batch, state)
            flush()
            pending = (number, metrics)
            report = Progress(number, steps, metrics, state, so_far)
            stop = [callback(report) for callback in callbacks]
            if any(stop) or interrupted() or rejected >= _GIVE_UP_AFTER:
                break
        flush()
    if missed:
        warnings.warn(
            f"A solve failed or stopped at its cap in {missed} of {number} steps"
            f"{_worst(history)}: the hypergradients there were not what was asked for. Raise the "
            "solver's max_steps, as in method=methods.rcig(solver=DualCG(max_steps=500)), or "
            "choose another solver.",
            RuntimeWarning,
            stacklevel=3,
        )
    if rejected >= _GIVE_UP_AFTER:
        warnings.warn(
            f"Stopped after step {number}: {rejected} steps in a row had no finite hypergradient. "
            "What had been distilled before is returned. Lower the optimiser's learning rate or "
            "raise the method's l2_rate.",
            RuntimeWarning,
            stacklevel=3,
        )
    return state, history


def _worst(history: dict[str, list[float]]) -> str:
    """The largest finite residual, in words, if there is one."""
    residuals = [r for r in history.get("residual", []) if np.isfinite(r)]
    return f", the worst relative residual {max(residuals):.1e}" if residuals else ""


def _preprocessed(
    batches: Iterator[Any], preprocess: AbstractPreprocess, num_classes: int
) -> Iterator[tuple[Array, np.ndarray]]:
    """Batches of a set on disk, preprocessed on the device; their labels are seen here first."""
    transform = eqx.filter_jit(preprocess)
    for images, labels in batches:
        if labels.max() >= num_classes:
            raise ValueError(
                f"A label is {labels.max()}, but the images looked at before the run had "
                f"{num_classes} classes: pass a Dataset or an ImageFolder, which name them all."
            )
        yield transform(images), labels


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C within sets a flag; the second interrupts as always."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # signals belong to the main thread
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(*_: object) -> None:
        pressed.set()
        # A job in the background starts with the signal ignored: twice still interrupts.
        signal.signal(signal.SIGINT, before if callable(before) else signal.default_int_handler)

    signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def check_counts(**counts: Any) -> None:
    """Raise `ValueError` for a number that is not a whole one of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1.")


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
    if not isinstance(train, Dataset | ImageFolder | grain.MapDataset) and not (
        isinstance(train, tuple) and len(train) == 2
    ):
        raise ValueError(
            f"train is a {type(train).__name__}: pass a Dataset, (images, labels), an ImageFolder "
            "or a grain.MapDataset."
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
    if average is not None and not callable(average):
        raise ValueError(f"average is {average!r}: pass a function such as ema(0.99).")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ValueError(f"callbacks is {callbacks!r}: pass a sequence of functions.")


def check_model(make_model: MakeModel, coreset: Coreset) -> None:
    """Raise `ValueError` unless the function makes a network for these images and classes."""
    if isinstance(make_model, AbstractNetwork) or not callable(make_model):
        raise ValueError(
            f"model is a {type(make_model).__name__}: pass a function from a key to a network, "
            "such as convnet_for(train.image_shape, train.num_classes)."
        )
    model = eqx.filter_eval_shape(make_model, jr.key(0))
    if not isinstance(model, AbstractNetwork):
        raise ValueError(
            f"model= made a {type(model).__name__}; it must be a function from a key to an "
            "rcig_eqx.models.AbstractNetwork, such as convnet_for(...), or a models.Network made "
            "of your own module."
        )
    try:
        outputs = eqx.filter_eval_shape(model, coreset.images)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The network does not take images {coreset.images.shape[1:]}: build it for their "
            f"size and channels. It says: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(model, ConvNet | Network):
        check_independent(make_model(jr.key(0)), coreset.images[0])
    if outputs.shape != coreset.labels.shape:
        raise ValueError(
            f"The network gives {outputs.shape[-1]} outputs for {coreset.num_classes} classes: "
            f"build it with num_classes={coreset.num_classes}."
        )


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


def check_losses(method: AbstractMethod, coreset: Coreset, batch_size: int) -> None:
    """Raise `ValueError` unless a method's losses, or its parts', make one number each."""
    for part in vars(method).values():
        if isinstance(part, AbstractMethod):
            check_losses(part, coreset, batch_size)
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
        if getattr(value, "shape", None) != ():
            raise ValueError(f"{name} returned {value}, not one number: {wanted} that does.")


def describe_model(make_model: MakeModel) -> dict[str, Any]:
    """A network in plain values, enough to build a `ConvNet` again."""
    model = eqx.filter_eval_shape(make_model, jr.key(0))
    if not isinstance(model, ConvNet):
        return {"name": type(model).__name__}
    width = model.blocks[0].kernel.shape[-1]
    return {"name": "ConvNet", "width": width, "depth": len(model.blocks)}


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
    return {"name": type(strategy).__name__, **values}


def versions() -> dict[str, str]:
    """The versions of what computes."""
    names = ("rcig-eqx", "jax", "equinox", "optax", "lineax")
    return {name: importlib.metadata.version(name) for name in names}
