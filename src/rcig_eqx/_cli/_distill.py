"""The command `rcig-eqx distill`."""

import dataclasses
import signal
from pathlib import Path
from typing import Annotated, Any

import jax.random as jr
from typer import Argument, Exit, Option

from .._checks import check_known
from .._distill import distill
from .._recipe import Recipe, coreset_optimizer
from ..data import DATASETS, AbstractImages
from ..data._dataset import noun
from ..data._paths import user_path
from ..evaluation import METRICS
from ..evaluation._classes import match_classes
from ..evaluation._evaluate import evaluate, fresh_network
from ..initializers import INITIALIZERS
from ..io._files import sweep
from ..io._lock import hold, releasing
from ..io._plot import drawing, has_pictures, save_grid
from ..io._result import RESULT, DistillResult
from ..io._terminal import echo
from ..methods import METHODS
from ..models import MakeModel, network_for
from ..models._architectures import default_architecture
from ..parameterizations import PARAMETERIZATIONS
from ..parameterizations._budget import check_storage
from ..run._checkpoint import Checkpoints
from ..run._devices import first_devices
from ..run._loggers import LOGGERS
from ..run._loop import received
from ..run._progress import OPEN, of_steps
from ._best import PART, KeepBestFlag, Patience, Selection, TestEvery, Validation, between_tests
from ._config import SettingsFile
from ._folder import check_free, earlier_kept
from ._held_out import Split, to_distill
from ._images import (
    Images,
    check_writable,
    echo_paths,
    evaluation_key,
    say_networks,
    say_stored,
    shown_name,
    write_report,
)
from ._options import (
    ARCHITECTURE,
    DEPTH,
    NORMALIZATION,
    NUM_NETWORKS,
    USUAL_WIDTH,
    WIDTH,
    Augment,
    Balanced,
    Channels,
    Directory,
    HoldOut,
    Metrics,
    Networks,
    Quiet,
    Seed,
    Size,
    SkipCorrupt,
)
from ._photos import Reading
from ._time import steps_to_take, time_limit, width_for


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What each distillation is asked for, alone or compared with others."""

    dataset: Annotated[
        str,
        Argument(
            help=f"A data set's name ({', '.join(DATASETS)}; fashion_mnist_small "
            "comes along), an .npz file or a folder."
        ),
    ] = "fashion_mnist_small"
    images_per_class: Annotated[
        int | None,
        Option(
            "--images-per-class", "-n", help="Synthetic images of each class.", show_default="1"
        ),
    ] = None
    storage: Annotated[
        str | None,
        Option(
            help='A budget in place of --images-per-class, such as "1 image per class" in float32 '
            'or "25408 bits per class".',
            show_default=False,
        ),
    ] = None
    steps: Annotated[
        int | None, Option(help="Outer iterations.", show_default="1000; any number with --minutes")
    ] = None
    minutes: Annotated[
        float | None,
        Option(help="End the run after so many minutes of steps.", show_default=False),
    ] = None
    batch_size: Annotated[
        int | None,
        Option(
            help="Real images per step.", show_default="64 to 1024, by the distilled set's size"
        ),
    ] = None
    architecture: Annotated[
        str | None,
        Option(help=ARCHITECTURE, show_default="convnet for images, mlp for rows of a table"),
    ] = None
    normalization: Annotated[str, Option(help=NORMALIZATION)] = "none"
    width: Annotated[int | None, Option(help=WIDTH, show_default=USUAL_WIDTH)] = None
    depth: Annotated[int | None, Option(help=DEPTH, show_default="by image size")] = None
    learning_rate: Annotated[
        float | None,
        Option(
            help="Of the distilled images and labels.",
            show_default="0.03 for 500 steps, then falling",
        ),
    ] = None
    initialization: Annotated[
        str, Option(help=f"What to start from: {' or '.join(INITIALIZERS)}.")
    ] = "real"
    parameterization: Annotated[
        str, Option(help=f"What is stored: {' or '.join(PARAMETERIZATIONS)}.")
    ] = "plain"
    augment: Augment = None
    flip: Annotated[
        bool | None,
        Option(
            "--flip/--no-flip",
            help="Let the set stand for its mirror images too.",
            show_default="flip up to 1,000 RGB images",
        ),
    ] = None
    balanced: Balanced = None
    size: Size = None
    channels: Channels = None
    hold_out: HoldOut = None
    skip_corrupt: SkipCorrupt = False
    devices: Annotated[
        int | None, Option(min=1, help="Share every batch among so many.", show_default="one")
    ] = None
    workers: Annotated[
        int, Option(min=0, help="Processes that read a set on disk ahead; threads if 0.")
    ] = 0
    directory: Directory = None
    log: Annotated[
        list[str] | None,
        Option(help=f"Write every step down: {' or '.join(LOGGERS)}.", show_default=False),
    ] = None
    networks: Networks = NUM_NETWORKS
    evaluation_steps: Annotated[
        int | None,
        Option(min=1, help="Training steps of each.", show_default="by the set's size"),
    ] = None
    metric: Metrics = None
    quiet: Quiet = False

    @property
    def name(self) -> str:
        """What a folder of such runs is called."""
        size = f"{self.count}ipc"
        if self.storage:
            size = self.storage.strip().replace(",", "").replace(" ", "-")
        return f"{Path(self.dataset).stem}-{size}"

    @property
    def amount(self) -> str:
        """What was asked for, in words."""
        return self.storage or f"{self.count} per class"

    @property
    def count(self) -> int | None:
        """Images per class, where no budget decides."""
        return 1 if self.images_per_class is self.storage is None else self.images_per_class

    @property
    def outer_steps(self) -> int:
        """At most; any number where the time decides."""
        usual = 1000 if self.minutes is None else OPEN
        return usual if self.steps is None else self.steps

    @property
    def length(self) -> str:
        """How long the run is to be, in words."""
        steps = [f"in {self.outer_steps:,} steps"] * (self.outer_steps < OPEN)
        time = [] if self.minutes is None else [f"for {self.minutes:g} min"]
        return " or ".join([*time, *steps])

    def say(self, text: str) -> None:
        """Print what is no outcome."""
        if not self.quiet:
            echo(text)


@dataclasses.dataclass(frozen=True)
class DistillOptions(RunOptions):
    """What `rcig-eqx distill` is asked for."""

    method: Annotated[
        str | None,
        Option(
            help=f"How the hypergradient is computed: {', '.join(METHODS)}; frepo_platt is "
            "frepo with the paper's outer loss in place of its own.",
            show_default="head-only for half of the steps or 1,000, then rcig",
        ),
    ] = None
    seed: Seed = 0
    out: Annotated[
        Path | None,
        Option(help="Folder for the result.", show_default="runs/<dataset>-<size>"),
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier result.")] = False
    resume: Annotated[
        bool,
        Option(
            "--resume",
            help="Go on with the run in the folder, by its run.toml; name --steps or --minutes to "
            "make it longer.",
        ),
    ] = False
    config: Annotated[
        Path | None,
        Option(
            help="A run.toml, as each run leaves one: its options, where the command names none.",
            show_default=False,
        ),
    ] = None
    keep_best: KeepBestFlag = False
    validation: Validation = None
    patience: Patience = None
    test_every: TestEvery = None
    checkpoint_every: Annotated[
        float, Option(help="Seconds between checkpoints, in <out>/checkpoints.")
    ] = Checkpoints.every
    evaluate_: Annotated[
        bool, Option("--evaluate/--no-evaluate", help="Measure the test accuracy afterwards.")
    ] = True

    @property
    def folder(self) -> Path:
        """Of the result."""
        return user_path(self.out or Path("runs") / self.name)

    @property
    def file(self) -> Path:
        """Of the result."""
        return self.folder / RESULT

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def kept(self) -> bool:
        """Whether there are checkpoints."""
        return any(self.checkpoints.glob("*.safetensors"))

    @property
    def selection(self) -> Selection | None:
        """How the set that is kept is chosen, if not as the last one."""
        given = self.validation, self.patience, self.test_every
        if not self.keep_best and all(value is None for value in given):
            return None
        return Selection(
            PART if self.validation is None else self.validation,
            self.test_every or between_tests(self.outer_steps),
            self.patience,
            self.evaluation_steps,
            self.seed,
            self.checkpoints / "best.safetensors",
        )


@releasing()
def distill_command(asked: DistillOptions) -> None:
    """Distill a data set, and compare the result with as many random real images."""
    if asked.storage is not None:
        check_storage(asked.storage)
    check_writable(asked.folder)
    hold(asked.folder)
    check_free(asked)
    strategies, limit = _strategies(asked), time_limit(asked)
    reading = Reading(
        asked.directory, asked.size, asked.channels, asked.skip_corrupt, quiet=asked.quiet
    )
    train, split = to_distill(asked.dataset, reading, asked.hold_out, test=asked.evaluate_)
    if isinstance(train, AbstractImages):
        train.workers = asked.workers
    architecture = asked.architecture or default_architecture(train.image_shape)
    width = width_for(asked, architecture, train.image_shape)
    model = network_for(
        architecture,
        train.image_shape,
        train.num_classes,
        width=width,
        depth=asked.depth,
        normalization=asked.normalization,
    )
    if split.test is not None:
        match_classes(
            split.test, train.class_names, train.num_classes
        )  # before the run, not after it
    if asked.resume and asked.file.exists() and not asked.kept:
        raise FileNotFoundError(
            f"{asked.file} is there, but no checkpoint of its run: pass --overwrite to start anew."
        )
    choice = None
    if asked.selection is not None:
        whole, (train, choice) = len(train), asked.selection.split(train)
        asked.say(f"Held out {choice.images:,} of {whole:,} training images to choose a set by.")
        strategies["callbacks"].append(choice.best)
    settings = SettingsFile(asked, width=width, images_per_class=asked.count)
    strategies["callbacks"] += [settings, *([limit] if limit else [])]
    result = _run(asked, train, model, strategies)
    settings()
    if choice is not None:
        result, said = choice.of(result)
        asked.say(said)
    seed, learning_rate = asked.seed, asked.learning_rate
    of = {"dataset": shown_name(asked.dataset), "seed": seed, "learning_rate": learning_rate}
    if limit and limit.reached and not received:  # it ended as asked
        of |= {"steps": result.recipe["steps_done"], "minutes": limit.minutes}
    result = dataclasses.replace(result, recipe=result.recipe | of | split.recipe)
    written = [result.save(asked.file)]
    if has_pictures(result.coreset):
        with drawing():
            title = f"{Path(asked.dataset).stem}, {result.recipe['images_per_class']} per class"
            picture = asked.file.with_suffix(".png")
            written.append(save_grid(result.coreset, result.class_names, picture, title=title))
    if result.interrupted and not (choice and choice.best.ended):
        step = of_steps(result.recipe["steps_done"], asked.outer_steps)
        echo(
            f"Stopped after {step}. The result so far is kept; rcig-eqx distill --resume --out "
            f"{asked.folder} goes on."
        )
        echo_paths(written)
        raise Exit(128 + (received or [signal.SIGINT])[-1])
    if limit:
        taken = float(result.history["seconds"][-1]) / 60
        echo(f"Reached step {result.recipe['steps_done']:,} in {taken:.1f} min.")
    if split.test is not None:
        written.append(_evaluated(asked, result, split, written))
    elif asked.evaluate_:
        asked.say(
            f"{asked.dataset} has no test split: not evaluated. See rcig-eqx evaluate --data."
        )
    echo_paths(written)


def _strategies(asked: DistillOptions) -> dict[str, Any]:
    """What is asked for by name, as arguments of `distill`."""
    loggers = [LOGGERS.find("log", name) for name in asked.log or []]
    recipe = Recipe(
        METHODS.find("method", asked.method)() if asked.method else None,
        optimizer=coreset_optimizer(asked.learning_rate),
        parameterization=PARAMETERIZATIONS.find("parameterization", asked.parameterization)(),
        flip=asked.flip,
        augment=True if asked.augment == "paper" else asked.augment,
        balanced=asked.balanced,
    )
    check_known("initialization", asked.initialization, INITIALIZERS)
    for name in asked.metric or []:
        check_known("metrics", name, METRICS)
    return {
        "initialization": asked.initialization,
        "recipe": recipe,
        "devices": first_devices(asked.devices),
        "callbacks": [make(asked.folder) for make in loggers],
    }


def _run(
    asked: DistillOptions, train: Images, model: MakeModel, strategies: dict[str, Any]
) -> DistillResult:
    """The run itself, with checkpoints beside the result."""
    sweep(asked.folder, asked.file.name)
    asked.say(
        f"Distilling {asked.dataset} ({len(train):,} {noun(train.image_shape)}, "
        f"{train.num_classes} classes) to {asked.amount} {asked.length}. Ctrl-C stops and keeps "
        "the result; --resume goes on."
    )
    with earlier_kept(asked):
        return distill(
            train,
            images_per_class=asked.count,
            storage=asked.storage,
            key=jr.key(asked.seed),
            model=model,
            steps=steps_to_take(asked),
            batch_size=asked.batch_size,
            checkpoint_dir=Checkpoints(
                asked.checkpoints, asked.checkpoint_every, keep=2, resume=asked.resume
            ),
            progress=not asked.quiet,
            **strategies,
        )


def _evaluated(
    asked: DistillOptions, result: DistillResult, split: Split, written: list[Path]
) -> Path:
    """The file of the result's evaluation, which is printed."""
    test = split.test
    assert test is not None, "there are test images"
    fresh = say_networks(fresh_network(result), asked.networks)
    asked.say(f"Evaluating {say_stored(result)} on {len(test):,} {split.name} images with {fresh}.")
    try:
        report = evaluate(
            result,
            test,
            key=evaluation_key(asked.seed),
            num_networks=asked.networks,
            steps=asked.evaluation_steps,
            metrics=asked.metric or (),
            progress=not asked.quiet,
        )
    except KeyboardInterrupt:
        echo("Evaluation stopped. The distilled set is kept:")
        echo_paths(written)
        raise Exit(128 + signal.SIGINT) from None
    path = asked.folder / "evaluation.json"
    write_report(path, result, report, asked.dataset, split.name, test, asked.seed)
    echo(f"\n{report}\n")
    return path
