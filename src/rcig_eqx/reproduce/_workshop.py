"""Distilled sets and their accuracies: made once and filed, and what that takes."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._coreset import Coreset
from .._describe import describe, versions
from .._distill import distill
from .._recipe import Recipe
from .._types import Device
from ..data import AbstractImages, AbstractPreprocess, DataError, Dataset, load, open_records
from ..data._preprocess import from_state, to_state
from ..data._sources import SPLITS
from ..evaluation._across import pooled
from ..evaluation._evaluate import evaluate
from ..evaluation._report import Evaluation
from ..io._files import read_checked, write_atomically, write_checked
from ..io._lock import hold, releasing
from ..io._result import DistillResult, load_result
from ..models import MakeModel, split_parameters
from ..models._check import describe_model
from ..run._checkpoint import Checkpoints
from ..run._devices import make_mesh, shared_batch
from ..run._loop import gave_up
from ..run._memory import estimate_memory
from ..run._resume import digest
from ._plan import Scale, arguments, model_of, preprocess_of
from ._report import counted
from ._rows import Row

_FITTED = "rcig_eqx-preprocess-1"
BUNDLED = {"fashion_mnist": "fashion_mnist_small"}
"""What comes along in place of the paper's data sets."""


class Interrupted(Exception):
    """Ctrl-C, or another signal, ended a distillation; what there is has been filed."""


@dataclasses.dataclass
class Workshop:
    """Where the rows of a table are run, and what is there is taken as it is.

    `folder/<row>-<method>/<scale>/seed<k>/` holds the set, its checkpoints until it is whole, and
    one JSON file an evaluation; called again, it goes on where it stopped.

    - `folder`: of all runs.
    - `scale`, `method`, `settings`: how rows are run; the last two by name, in `METHODS` and
      `SETTINGS`.
    - `directory`: looked in first for data sets.
    - `devices`: those that share every outer batch; JAX's default one if `None`.
    - `workers`: processes that read a set on disk ahead; threads of this one do if 0.
    - `say`: is given a line of text at every new piece of work.
    - `progress`: whether bars are shown.
    - `bundled`: whether Fashion-MNIST is the small set that comes along.
    - `remarks`: what a reader of the results must know, found on the way.
    """

    folder: Path
    scale: Scale
    method: str = "default"
    settings: str = "library"
    directory: Path | None = None
    devices: Sequence[Device] | None = None
    workers: int = 0
    say: Callable[[str], None] = print
    progress: bool = True
    bundled: bool = False
    remarks: dict[str, None] = dataclasses.field(default_factory=dict)
    _sets: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict)

    def _source(self, dataset: str) -> str:
        """The data set that stands for a row's."""
        return BUNDLED[dataset] if self.bundled else dataset

    def data(self, row: Row, split: str) -> Any:
        """A split of the row's data set, in memory or on disk; read once."""
        key = (row.dataset, split)
        if key not in self._sets:
            from_disk = open_records if row.dataset == "imagenet64" else load
            source = self._source(row.dataset)
            self._sets[key] = from_disk(source, split, directory=self.directory)
            if isinstance(self._sets[key], AbstractImages):
                self._sets[key].workers = self.workers
            shape, facts = self._sets[key].image_shape, row.facts
            if tuple(shape) != facts.shape:
                raise DataError(f"{facts.title} has images of {shape}, not {facts.shape}.")
            read = [self._sets[row.dataset, s] for s in SPLITS if (row.dataset, s) in self._sets]
            if len({found.class_names for found in read}) > 1:
                raise DataError(
                    f"The splits of {facts.title} do not have the same classes in the same order: "
                    "take both from the same form of it."
                )
        return self._sets[key]

    def training_images(self) -> dict[str, int]:
        """How many there are of each data set read so far."""
        sets = self._sets.items()
        return {self._source(name): len(x) for (name, part), x in sets if part == "train"}

    def _fitted(self, row: Row) -> AbstractPreprocess:
        """The preprocessing of the row's whole training split; fitted once, and filed.

        Whitening tiles of 64 pixels takes ten minutes of a core, and more to read all images.
        """
        key, train = (row.dataset, "preprocess"), self.data(row, "train")
        if key in self._sets:
            return self._sets[key]
        mark = digest([train.images]) if isinstance(train, Dataset) else f"{len(train)}"
        file = self.folder / f"{row.dataset}-{mark}-preprocess.safetensors"
        if file.exists():
            card, arrays = read_checked(file, _FITTED, "fitted preprocessing")
            fitted = from_state(card["preprocess"], arrays)
        else:
            self.say(f"Fitting the preprocessing of {row.facts.title}: {len(train):,} images")
            fitted = preprocess_of(row, train, progress=self.progress)
            config, arrays = to_state(fitted)
            write_checked(file, {"format": _FITTED, "preprocess": config}, arrays)
        self._sets[key] = fitted
        return fitted

    def place(
        self,
        row: Row,
        seed: int,
        *,
        method: str | None = None,
        normalization: str | None = None,
        variant: str = "",
        **_: Any,
    ) -> Path:
        """The folder of one distilled set, from what `distilled` is given."""
        method = self.scale.method(row, method or self.method)
        settings = "" if self.settings == "library" else f"-{self.settings}"
        normalized = f"-{normalization}" if normalization else ""
        name = f"{row.name.replace('/', '-')}-{method}{settings}{variant}{normalized}"
        return self.folder / name / self.scale.name / f"seed{seed}"

    def file_of(self, row: Row, seed: int = 0, **how: Any) -> Path:
        """The file of one distilled set, there or not."""
        return self.place(row, seed, **how) / "distilled.safetensors"

    @releasing()
    def distilled(
        self,
        row: Row,
        seed: int = 0,
        *,
        method: str | None = None,
        normalization: str | None = None,
        variant: str = "",
        train: Any = None,
        changed: Mapping[str, Any] = MappingProxyType({}),
    ) -> DistillResult:
        """The row's set of this seed: the one filed, or distilled now, from its last checkpoint.

        `variant` is added to the folder's name where `changed`, arguments of `distill`, or other
        images in `train`, make it another run. Raises `Interrupted` if it was ended before its
        last step.
        """
        method = method or self.method
        how = {"method": method, "normalization": normalization, "variant": variant}
        folder, file = self.place(row, seed, **how), self.file_of(row, seed, **how)
        settings = arguments(row, self.scale, method, self.settings, normalization) | dict(changed)
        preprocess = functools.partial(self._fitted, row)
        if train is None:
            train = self.data(row, "train")
        else:
            settings["batch_size"] = min(settings["batch_size"], len(train))
            preprocess = functools.partial(preprocess_of, row, train)
        if self.devices and self.scale.batch_size is None:
            settings["batch_size"] = shared_batch(make_mesh(self.devices), settings["batch_size"])
        what = f"{folder.parent.parent.name}, seed {seed}"
        hold(folder)
        if file.exists():
            result = load_result(file)
            _check_filed(file, result, settings, len(train))
            self._remark(what, result)
            return result
        self.say(f"Distilling {what}: {settings['steps']:,} steps")
        kept = folder / "checkpoints"
        with jax.enable_x64(row.float64):
            result = distill(
                train,
                key=jr.key(seed),
                preprocess=preprocess(),
                checkpoint_dir=Checkpoints(kept, keep=2, resume=any(kept.glob("*.safetensors"))),
                devices=self.devices,
                progress=self.progress,
                **settings,
            )
        if result.interrupted and not gave_up(result.history):
            raise Interrupted
        of = {
            "dataset": self._source(row.dataset),
            "training images": len(train),
            "asked": _asked(settings),
        }
        result = dataclasses.replace(result, recipe=result.recipe | of)
        result.save(file)
        self._remark(what, result)
        for old in kept.glob("*.safetensors"):
            old.unlink(missing_ok=True)
        return result

    def _remark(self, what: str, result: DistillResult) -> None:
        if result.interrupted:
            done = f"{result.recipe['steps_done']:,} of {result.recipe['steps']:,}"
            self.remarks[f"{what} diverged after {done} steps, and is taken as it was then."] = None
        if result.recipe["versions"] != versions():
            made = ", ".join(f"{name} {v}" for name, v in result.recipe["versions"].items())
            self.remarks[f"{what} was distilled before, by {made}."] = None

    def accuracy(
        self,
        row: Row,
        *,
        augment: bool = False,
        labels: str = "learned",
        network: tuple[str, MakeModel] | None = None,
        real: bool = False,
        **how: Any,
    ) -> Evaluation:
        """Test accuracy pooled over the scale's seeds; each is measured once, and filed.

        `network` is a name and a function to evaluate with, the row's own with ReLU if `None`;
        `real` evaluates as many random real images in the set's place; `how` is handed to
        `distilled`.
        """
        flags = {"random": real, "augmented": augment, "hard": labels == "hard"}
        kinds = ["evaluation", *(name for name, asked in flags.items() if asked)]
        name = "-".join([*kinds, *([network[0]] if network else [])])
        own_model = model_of(row, self.scale, how.get("normalization"), softplus=None)
        model = network[1] if network else own_model
        given = {"real": real, "augment": augment, "labels": labels, "model": model}
        each = []
        for seed in range(self.scale.seeds):
            result, folder = self.distilled(row, seed, **how), self.place(row, seed, **how)
            each.append(self.evaluated(row, result, name, folder, seed=seed, **given))
        return pooled(each)

    def evaluated(
        self,
        row: Row,
        result: DistillResult,
        name: str,
        folder: Path,
        *,
        seed: int = 0,
        real: bool = False,
        **options: Any,
    ) -> Evaluation:
        """The scale's networks trained on a set and tested, once: the numbers are filed.

        With `real` they train on its random real images, shared among the draws.
        """
        networks, steps = self.scale.networks_of(row), self.scale.evaluation_steps_of(row)
        sets = result.baselines if real else (result.coreset,)

        def measure() -> dict[str, Any]:
            how_many = counted(networks, "network")
            self.say(f"Evaluating {row.name}, seed {seed}, {name}: {how_many}, {steps:,} steps")
            each = []
            for number, part in enumerate(np.array_split(range(networks), len(sets))):
                if len(part):
                    one = dataclasses.replace(result, coreset=sets[number])
                    given: Any = {"learning_rate": 1e-4, "batch_size": 256}  # the paper's
                    given |= options | {"steps": steps, "num_networks": len(part)}
                    given |= {"baseline": False, "progress": self.progress}
                    key = jr.fold_in(jr.key(seed), 2**31 + number)
                    each.append(evaluate(one, self.data(row, "test"), key=key, **given))
            return pooled(each).to_json()

        file = folder / f"{name}-{networks}x{steps}.json"
        return Evaluation.from_json(filed(file, sets, measure))

    def seconds(self, row: Row, **how: Any) -> list[float]:
        """Seconds of each iteration of the first seed's run, what compiles left out."""
        return np.diff(self.distilled(row, **how).history["seconds"]).tolist()


def typical(seconds: Sequence[float]) -> float:
    """The median of the latter half, in which the default method is the exact one."""
    return statistics.median(seconds[len(seconds) // 2 :]) if seconds else float("nan")


def filed(file: Path, sets: Sequence[Coreset], measure: Callable[[], Any]) -> dict[str, Any]:
    """What was measured of sets, in plain values: filed, or measured now and filed.

    A file about other sets, such as one that has been removed since, is written anew.
    """
    mark = digest(np.asarray(x) for each in sets for x in (each.images, each.labels))
    if file.exists():
        found = json.loads(file.read_bytes())
        if found.get("set") == mark:
            return found["measured"]
    found = {"set": mark, "measured": measure()}
    write_atomically(file, json.dumps(found, indent=2).encode())
    return found["measured"]


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The method and the pool of a run as they were before it, in plain values."""
    return {"method": describe(settings["method"]), "pool": describe(settings["recipe"].pool)}


def _check_filed(file: Path, result: DistillResult, settings: Mapping[str, Any], count: int):
    """Raise `ValueError` if a filed set is of other settings than those asked for."""
    names = ("steps", "images_per_class", "batch_size")
    wanted = {name: settings[name] for name in names} | {"training images": count}
    wanted |= {"model": describe_model(settings["model"]), "asked": _asked(settings)}
    wanted["flip"] = settings["recipe"].flip
    for name, value in wanted.items():
        if result.recipe.get(name) != value:
            raise ValueError(
                f"{file} has {name} {result.recipe.get(name)!r}, and {value!r} is asked for: "
                "remove it, or choose another folder."
            )


def parts_of(
    row: Row, workshop: Workshop, *, method: str | None = None, normalization: str | None = None
) -> tuple[Recipe, Coreset, int]:
    """The recipe of a run of this row, the shapes of its set, and its outer batch."""
    method, facts = method or workshop.method, row.facts
    given = arguments(row, workshop.scale, method, workshop.settings, normalization)

    def empty() -> Coreset:
        zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
        images, labels = zeros((row.images, *facts.shape)), zeros((row.images, facts.classes))
        return Coreset(images, labels, zeros(()), flip=row.flip)

    coreset = eqx.filter_eval_shape(empty)
    recipe = dataclasses.replace(given["recipe"], model=given["model"])
    return recipe, coreset, min(given["batch_size"], facts.images)


def dry_run(row: Row, workshop: Workshop, **how: Any) -> dict[str, Any]:
    """Shapes, counts, and the memory of a step.

    `how` is another `method` or `normalization` than the workshop's and the row's. The step is
    traced and compiled, which takes minutes for the largest rows: one that could not start raises
    here.
    """
    with jax.enable_x64(row.float64):
        recipe, coreset, batch_size = parts_of(row, workshop, **how)
        make = recipe.chosen()[1]
        parameters = eqx.filter_eval_shape(lambda key: split_parameters(make(key))[0], jr.key(0))
        memory = estimate_memory(recipe, coreset, batch_size)
    return {
        "images": coreset.images.shape,
        "labels": coreset.labels.shape,
        "mirrored": row.flip,
        "parameters": sum(x.size for x in jax.tree.leaves(parameters)),
        "outer batch": (batch_size, *row.facts.shape),
        "method": workshop.scale.method(row, how.get("method", workshop.method)),
        "steps": workshop.scale.steps_of(row),
        "memory": str(memory),
    }
