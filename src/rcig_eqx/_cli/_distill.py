"""The command `rcig-eqx distill`."""

import contextlib
import dataclasses
import shutil
import signal
from collections.abc import Iterator
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
from ..io._result import DistillResult
from ..io._terminal import echo
from ..methods import METHODS
from ..models import MakeModel, network_for
from ..models._architectures import default_architecture
from ..parameterizations import PARAMETERIZATIONS
from ..parameterizations._budget import check_storage
from ..run._checkpoint import Checkpoints
from ..run._devices import first_devices
from ..run._loop import received
from ..run.loggers import LOGGERS
from ._images import (
    Images,
    check_writable,
    echo_paths,
    evaluation_key,
    load_split,
    load_test,
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
    WIDTH,
    Directory,
    Full,
    FullAccuracy,
    Metrics,
    Networks,
    Quiet,
    Seed,
)
from ._page import page_of_run, repeating, write_page


@dataclasses.dataclass(frozen=True)
class DistillOptions:
    """What `rcig-eqx distill` is asked for."""

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
    steps: Annotated[int, Option(help="Outer iterations.")] = 1000
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
    width: Annotated[int | None, Option(help=WIDTH, show_default="the network's usual")] = None
    depth: Annotated[int | None, Option(help=DEPTH, show_default="by image size")] = None
    method: Annotated[
        str | None,
        Option(
            help=f"How the hypergradient is computed: {', '.join(METHODS)}; frepo_platt is "
            "frepo with the paper's outer loss in place of its own.",
            show_default="head-only for half of the steps or 1,000, then rcig",
        ),
    ] = None
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
    flip: Annotated[
        bool | None,
        Option(
            "--flip/--no-flip",
            help="Let the set stand for its mirror images too.",
            show_default="flip up to 1,000 RGB images",
        ),
    ] = None
    devices: Annotated[
        int | None, Option(min=1, help="Share every batch among so many.", show_default="one")
    ] = None
    workers: Annotated[
        int, Option(min=0, help="Processes that read a set on disk ahead; threads if 0.")
    ] = 0
    seed: Seed = 0
    directory: Directory = None
    out: Annotated[
        Path | None,
        Option(help="Folder for the result.", show_default="runs/<dataset>-<size>"),
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier result.")] = False
    resume: Annotated[
        bool, Option("--resume", help="Go on with a run that was interrupted, however it was.")
    ] = False
    checkpoint_every: Annotated[
        float, Option(help="Seconds between checkpoints, in <out>/checkpoints.")
    ] = Checkpoints.every
    log: Annotated[
        list[str] | None,
        Option(help=f"Log to more than metrics.jsonl: {', '.join(LOGGERS)}.", show_default=False),
    ] = None
    evaluate_: Annotated[
        bool, Option("--evaluate/--no-evaluate", help="Measure the test accuracy afterwards.")
    ] = True
    networks: Networks = NUM_NETWORKS
    evaluation_steps: Annotated[
        int | None,
        Option(min=1, help="Training steps of each.", show_default="by the set's size"),
    ] = None
    metric: Metrics = None
    full: Full = False
    full_accuracy: FullAccuracy = None
    quiet: Quiet = False

    @property
    def folder(self) -> Path:
        """Of the result."""
        size = f"{self.count}ipc"
        if self.storage:
            size = self.storage.strip().replace(",", "").replace(" ", "-")
        return user_path(self.out or Path("runs") / f"{Path(self.dataset).stem}-{size}")

    @property
    def size(self) -> str:
        """What was asked for, in words."""
        return self.storage or f"{self.count} per class"

    @property
    def count(self) -> int | None:
        """Images per class, where no budget decides."""
        return 1 if self.images_per_class is self.storage is None else self.images_per_class

    @property
    def file(self) -> Path:
        """Of the result."""
        return self.folder / "distilled.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def kept(self) -> bool:
        """Whether there are checkpoints."""
        return any(self.checkpoints.glob("*.safetensors"))

    def say(self, text: str) -> None:
        """Print what is no outcome."""
        if not self.quiet:
            echo(text)


@releasing()
def distill_command(asked: DistillOptions) -> None:
    """Distill a data set, and compare the result with as many random real images."""
    if asked.storage is not None:
        check_storage(asked.storage)
    check_writable(asked.folder)
    hold(asked.folder)
    _check_free(asked)
    strategies = _strategies(asked)
    train = load_split(asked.dataset, "train", asked.directory)
    if isinstance(train, AbstractImages):
        train.workers = asked.workers
    model = network_for(
        asked.architecture or default_architecture(train.image_shape),
        train.image_shape,
        train.num_classes,
        width=asked.width,
        depth=asked.depth,
        normalization=asked.normalization,
    )
    test = load_test(asked.dataset, asked.directory) if asked.evaluate_ else None
    if test is not None:
        match_classes(test, train.class_names, train.num_classes)  # before the run, not after it
    if asked.resume and asked.file.exists() and not asked.kept:
        raise FileNotFoundError(
            f"{asked.file} is there, but no checkpoint of its run: pass --overwrite to start anew."
        )
    result = _run(asked, train, model, strategies)
    seed, learning_rate = asked.seed, asked.learning_rate
    name = shown_name(asked.dataset)
    of = {"dataset": name, "seed": seed, "learning_rate": learning_rate}
    of["command"] = repeating(asked, name)
    result = dataclasses.replace(result, recipe=result.recipe | of)
    written = [result.save(asked.file)]
    if has_pictures(result.coreset):
        with drawing():
            title = f"{Path(asked.dataset).stem}, {result.recipe['images_per_class']} per class"
            picture = asked.file.with_suffix(".png")
            written.append(save_grid(result.coreset, result.class_names, picture, title=title))
    if result.interrupted:
        done = result.recipe["steps_done"]
        echo(
            f"Stopped after step {done:,} of {asked.steps:,}. The result so far is kept; --resume "
            "goes on."
        )
        echo_paths([*written, *write_page(asked.folder, result)])
        raise Exit(128 + (received or [signal.SIGINT])[-1])
    if test is not None:
        written += _evaluated(asked, result, test, written)
    else:
        written += write_page(asked.folder, result, full=asked.full_accuracy)
    if test is None and asked.evaluate_:
        asked.say(
            f"{asked.dataset} has no test split: not evaluated. See rcig-eqx evaluate --data."
        )
    echo_paths(written)


def _check_free(asked: DistillOptions) -> None:
    """Raise `FileExistsError` for an earlier result that is neither to be replaced nor resumed."""
    if asked.overwrite or asked.resume:
        return
    if asked.file.exists():
        raise FileExistsError(
            f"{asked.file} is there already: pass --overwrite, another --out, or --resume to go on."
        )
    if asked.kept:
        raise FileExistsError(
            f"{asked.checkpoints} holds an interrupted run: pass --resume to go on with it, "
            "--overwrite to start anew, or another --out."
        )


def _strategies(asked: DistillOptions) -> dict[str, Any]:
    """What is asked for by name, as arguments of `distill`."""
    logs: list[str] = ["jsonl", *(asked.log or [])]
    loggers = [LOGGERS.find("log", name) for name in dict.fromkeys(logs)]
    recipe = Recipe(
        METHODS.find("method", asked.method)() if asked.method else None,
        optimizer=coreset_optimizer(asked.learning_rate),
        parameterization=PARAMETERIZATIONS.find("parameterization", asked.parameterization)(),
        flip=asked.flip,
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
        f"{train.num_classes} classes) to {asked.size} in {asked.steps:,} "
        "steps. Ctrl-C stops and keeps the result; --resume goes on."
    )
    with _earlier_kept(asked):
        return distill(
            train,
            images_per_class=asked.count,
            storage=asked.storage,
            key=jr.key(asked.seed),
            model=model,
            steps=asked.steps,
            batch_size=asked.batch_size,
            checkpoint_dir=Checkpoints(
                asked.checkpoints, asked.checkpoint_every, keep=2, resume=asked.resume
            ),
            progress=not asked.quiet,
            **strategies,
        )


@contextlib.contextmanager
def _earlier_kept(asked: DistillOptions) -> Iterator[None]:
    """An earlier run's checkpoints are set aside within, and are there again if it cannot begin."""
    earlier = asked.checkpoints.with_name("checkpoints.earlier")
    if asked.overwrite and not asked.resume and asked.checkpoints.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        asked.checkpoints.rename(earlier)
    try:
        yield
    except (ValueError, OSError):
        if earlier.exists() and not asked.kept:
            shutil.rmtree(asked.checkpoints, ignore_errors=True)
            earlier.rename(asked.checkpoints)
        raise
    except KeyboardInterrupt:
        then = "nothing was there to keep."
        if asked.kept:
            then = "--resume goes on from the last checkpoint."
        echo(f"Stopped at once: {then}", err=True)
        raise Exit(128 + signal.SIGINT) from None
    shutil.rmtree(earlier, ignore_errors=True)


def _evaluated(
    asked: DistillOptions, result: DistillResult, test: Images, written: list[Path]
) -> list[Path]:
    """The files of the result's evaluation, which is printed."""
    fresh = say_networks(fresh_network(result), asked.networks)
    asked.say(f"Evaluating {say_stored(result)} on {len(test):,} test images with {fresh}.")
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
        echo_paths([*written, *write_page(asked.folder, result)])
        raise Exit(128 + signal.SIGINT) from None
    path = asked.folder / "evaluation.json"
    write_report(path, result, report, asked.dataset, "test", test, asked.seed)
    echo(f"\n{report}\n")
    return [path, *page_of_run(asked, result, report, test, [*written, path])]
