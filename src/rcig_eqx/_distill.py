"""Algorithm 1 as one call: batches in, a distilled set out."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ._algorithm import State, init
from ._backend import usual_settings
from ._coreset import Coreset, fold_temperature
from ._describe import describe, versions
from ._plan import Asked, Plan, Train, resolve
from ._recipe import Optimizer, Recipe
from ._types import Device, PyTree
from .data import AbstractImages, AbstractPreprocess, DataError, Dataset, apply_in_chunks, stream
from .data._arrays import numbered
from .initializers import AbstractInitializer
from .io._lock import releasing
from .io._result import DistillResult
from .methods import AbstractMethod
from .models import MakeModel
from .parameterizations import Bits
from .parameterizations._packed import Packed
from .run._checkpoint import Checkpoints
from .run._devices import leads, local, own_rows, place, raised_on_all, shard_rows, wait_for_all
from .run._loop import Loop
from .run._progress import Callback, ProgressBar
from .run._resume import begin, fitted_arrays, run_card


@releasing()
@usual_settings()
def distill(
    train: Train,
    *,
    images_per_class: int | None = None,
    storage: str | Bits | None = None,
    key: PRNGKeyArray,
    method: AbstractMethod | None = None,
    model: MakeModel | None = None,
    steps: int = 1000,
    batch_size: int | None = None,
    initialization: str | Coreset | AbstractInitializer = "real",
    preprocess: AbstractPreprocess | None = None,
    optimizer: Optimizer | None = None,
    recipe: Recipe | None = None,
    checkpoint_dir: str | os.PathLike[str] | Checkpoints | None = None,
    resume: bool = False,
    devices: Sequence[Device] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> DistillResult:
    """Distill a training set into a few synthetic images per class (paper, Algorithm 1).

    **Arguments:**

    - `train`: a `Dataset`, a pair `(images [n h w c], labels [n])` of arrays or of tensors of
      PyTorch, which are n c h w; a set that stays on disk: a folder of images as an `ImageFolder`,
      `Records`, a Hugging Face dataset (of a `DatasetDict` its train split) or a TFDS data
      source; a PyTorch `Dataset` of `(image, label)` pairs or the one of a `DataLoader`; a list of
      such pairs; or a grain `MapDataset` of them. Labels are class numbers or text. The
      preprocessing is fitted on all images, those on disk being read once for it, and on 10,000 of
      a `MapDataset`; of what is on disk, starting images come from some 10,000.
    - `images_per_class`: how many synthetic images each class gets.
    - `storage`: a budget instead, such as `"1 image per class"` in float32 with its labels, or
      `Bits(25_408)` per class. It is spent on more images of fewer pixels and bits, or on as many
      as fit of the recipe's `parameterization`; [Storage](../storage.md) has the rule. What it
      chose is in `result.recipe["storage"]`. The method is then FRePo with `platt_loss`, on outer
      batches of 256, and the pool trains on 64 distilled images at a time, where none is given.
    - `key`: source of all randomness; the same key gives the same result.
    - `method`: from `rcig_eqx.methods`. `None`: the recipe's, or FRePo with `platt_loss` for the
      first `min(1000, steps // 2)` steps, then RCIG.
    - `model`: a function from a key to a network. `None`: the recipe's, or the paper's `ConvNet` of
      width 128. `convnet_for(train.image_shape, train.num_classes, width=32)` makes a smaller one.
    - `steps`: outer iterations.
    - `batch_size`: images of an outer batch. `None`: the recipe's, or 64 for every 16 distilled
      ones, at least 64 and at most 1,024, or all there are of a smaller set; rounded down to a
      multiple of the number of `devices`.
    - `initialization`: `"real"` images, `"noise"`, another name in `initializers.INITIALIZERS`, an
      [`AbstractInitializer`][rcig_eqx.initializers.AbstractInitializer], or a `Coreset` such as
      `earlier.last`. Its images are preprocessed; one that carries its preprocessing brings it
      along.
    - `preprocess`: an `AbstractPreprocess`, such as `data.standardize(images)` or your own; fitted
      on the training images if `None`: standardized if gray, whitened if RGB.
    - `optimizer`: of the distilled set, any of optax. `None`: the recipe's, or
      `coreset_optimizer()`.
    - `recipe`: all strategies as one value: [`Recipe`][rcig_eqx.Recipe] has more of them, `flip`
      and `pool` among them, [`presets.paper()`][rcig_eqx.presets.paper] returns the paper's.
    - `checkpoint_dir`: a folder for checkpoints of the whole state, or a
      [`Checkpoints`][rcig_eqx.Checkpoints] to say how often. `None`: none are kept.
    - `resume`: go on from the newest valid checkpoint there, or start if there is none, as the
      `resume` of a [`Checkpoints`][rcig_eqx.Checkpoints].
    - `devices`: those to share the outer batch, and the networks of a step where the recipe's
      `pool` asks for several; JAX's default one if `None`. `jax.devices()` are all of this
      process, and after `jax.distributed.initialize()` all of every process: see below.
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
    asked = Asked(
        train, images_per_class, storage, key, method, model, steps, batch_size, initialization,
        preprocess, optimizer, recipe, checkpoint_dir, resume, devices, callbacks, progress,
    )  # fmt: skip
    return _run(resolve(asked))


def _run(plan: Plan) -> DistillResult:
    """Take the steps of a plan."""
    mesh, folder, batch_size = plan.mesh, plan.folder, plan.batch_size
    state, history, card = init(plan.start, plan.recipe, key=plan.init_key), {}, {}
    if folder is not None:
        batch = jax.ShapeDtypeStruct((batch_size, *plan.seen.image_shape), jnp.float32)
        folder.kept = fitted_arrays(plan.preprocess)
        settings = plan.settings | {"method": describe(plan.recipe.chosen()[0])}
        card = run_card(settings, plan.train, plan.seen, state, plan.preprocess)
        card |= {"steps": plan.asked_first, "devices": mesh.size if mesh else 1}
        with raised_on_all(mesh):
            state, history = begin(folder, plan.found, card, state, batch)
    first, state = int(state.step), place(state, mesh) if mesh else state
    batches = _batches(plan, first)

    def result(state: State, history: dict[str, list[float]]) -> DistillResult:
        return _result(plan, state, history)

    with ProgressBar(enabled=plan.progress and leads(mesh)) as bar:
        if "storage" in plan.settings:
            bar.note(f"Storage: {plan.settings['storage']}.")
        if plan.balance.note:
            bar.note(plan.balance.note)
        if folder is not None and folder.resume and plan.found is None:
            bar.note(f"No checkpoint in {folder.folder} yet: starting at the beginning.")
        loop = Loop(
            batches, plan.steps, result, plan.callbacks, bar, folder, card, mesh, batch_size
        )
        state, history = loop.run(state, history)
    wait_for_all(mesh)  # the last checkpoint is there for whoever resumes next
    return result(state, history)


def _result(plan: Plan, state: State, history: dict[str, list[float]]) -> DistillResult:
    """What a run returns of a state and a history."""
    average, psi = local((state.average, state.psi), plan.mesh)

    def finished(coreset: Coreset) -> Coreset:
        # the next step takes the state's memory over
        coreset = _copied(coreset)
        coreset = fold_temperature(coreset) if plan.fold else coreset
        return dataclasses.replace(coreset, preprocess=plan.preprocess)

    made = plan.recipe.parameterization
    last, first = map(finished, (made.decode(psi), plan.baseline))
    layout, packed = made.layout(average), None
    if layout is None:
        coreset = finished(made.decode(average))
    else:  # what is stored is what is returned, bit for bit
        packed = Packed(made.pack(average), layout)
        packed = packed.folded() if plan.fold else packed
        coreset = packed.coreset(like=last)
    done = {"steps_done": int(state.step), "method": describe(state.recipe.chosen()[0])}
    done["versions"] = versions()
    arrays = {name: np.asarray(values, np.float32) for name, values in history.items()}
    names, recipe = plan.seen.class_names, plan.settings | done
    kept = _copied(average), plan.draws, packed
    return DistillResult(coreset, last, first, names, recipe, arrays, *kept)


def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _batches(plan: Plan, start: int) -> Iterator[tuple[Any, Any]]:
    """Preprocessed batches from number `start` on; sets in memory are preprocessed at once."""
    train, preprocess, mesh, size = plan.train, plan.preprocess, plan.mesh, plan.batch_size
    order = {"seed": plan.seed, "start": start, "rows": own_rows(mesh, size) if mesh else None}
    order["balanced"] = plan.balance.balanced
    if isinstance(train, Dataset) and not isinstance(train.images, np.memmap):
        images = apply_in_chunks(preprocess, train.images)
        return stream((images, train.labels), size, **order)
    workers = train.workers if isinstance(train, AbstractImages) else 0
    raw = stream(train, size, workers=workers, **order)
    if mesh:  # the preprocessing once, not with every batch
        preprocess = place(preprocess, mesh)
        raw = ((shard_rows(x, mesh, size), y) for x, y in raw)
    return _preprocessed(raw, preprocess, plan.seen.class_names)


def _preprocessed(
    batches: Iterator[Any], preprocess: AbstractPreprocess, class_names: tuple[str, ...]
) -> Iterator[tuple[Array, np.ndarray]]:
    """Batches of a set on disk, preprocessed on the device; their labels are seen here first."""
    transform, num_classes = eqx.filter_jit(preprocess), len(class_names)
    for images, labels in batches:
        # A reading process sends grain's own kind of array.
        labels, _ = numbered(np.asarray(labels), class_names)
        if labels.max() >= num_classes:
            raise DataError(
                f"A label is {labels.max()}, but the images looked at before the run had "
                f"{num_classes} classes: pass a Dataset or a set on disk that names them all."
            )
        if labels.min() < 0:
            raise DataError(f"A label is {labels.min()}: leave out images without a class first.")
        yield transform(images), labels
