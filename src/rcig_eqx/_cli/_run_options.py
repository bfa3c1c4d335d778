"""What `rcig-eqx distill` is asked for, and `compare` of each of its runs."""

import dataclasses
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..data import DATASETS
from ..data._paths import user_path
from ..initializers import INITIALIZERS
from ..io._result import RESULT
from ..io._terminal import echo
from ..methods import METHODS
from ..parameterizations import PARAMETERIZATIONS
from ..run._checkpoint import Checkpoints
from ..run._progress import OPEN
from ..run.loggers import LOGGERS
from ._best import PART, KeepBestFlag, Patience, Selection, TestEvery, Validation, between_tests
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
    Full,
    FullAccuracy,
    HoldOut,
    Metrics,
    Networks,
    Quiet,
    Seed,
    Size,
    SkipCorrupt,
)


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
        Option(help=f"Log to more than metrics.jsonl: {', '.join(LOGGERS)}.", show_default=False),
    ] = None
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
