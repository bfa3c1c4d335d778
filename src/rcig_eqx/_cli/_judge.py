"""The command `rcig-eqx judge`."""

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .._checks import ArgumentError, check_known
from ..data import AbstractImages, Dataset, standardize, zca
from ..data._paths import user_path
from ..evaluation._evaluate import fresh_network
from ..evaluation._judge import judge
from ..io._files import write_atomically
from ..io._load_export import Export
from ..io._published import LAYOUTS
from ..io._published._load import Published, load_published
from ..io._published._pytorch import CONSTANTS
from ..io._result import DistillResult
from ..io._terminal import echo
from ._held_out import HELD, reading_of, to_test
from ._images import (
    check_writable,
    echo_paths,
    evaluation_key,
    is_ours,
    load_split,
    read_set,
    say_networks,
    shown_name,
)
from ._options import (
    EPOCHS,
    NUM_NETWORKS,
    Directory,
    Epochs,
    EvaluationSteps,
    Full,
    FullAccuracy,
    Json,
    Networks,
    Quiet,
    Seed,
    SkipCorrupt,
    Width,
)
from ._photos import Reading

PREPROCESSING = {"standardize": standardize, "zca": zca}


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """What `rcig-eqx judge` is asked for."""

    set_: Annotated[
        Path,
        Argument(
            metavar="SET",
            help="A distilled set: the folder of a run or an export, a file, or another project's.",
        ),
    ]
    data: Annotated[
        str | None,
        Option(help="Data set of both splits.", show_default="the one that was distilled"),
    ] = None
    preprocess: Annotated[
        str | None,
        Option(
            help="What the images of another project went through. zca, and standardize of gray "
            "images: FRePo, RCIG. A data set, for the mean and standard deviation that the authors "
            f"of DC, MTT and DD-Ranking take of it: {', '.join(CONSTANTS)}.",
            show_default=False,
        ),
    ] = None
    layout: Annotated[
        str | None,
        Option(help=f"Of another project: {', '.join(LAYOUTS)}.", show_default="by file name"),
    ] = None
    normalized: Annotated[
        bool | None,
        Option(
            "--normalized/--pixels",
            help="Whether another project's images are stored preprocessed.",
            show_default="by layout",
        ),
    ] = None
    flip: Annotated[
        bool | None,
        Option(
            "--flip/--no-flip",
            help="Whether another project's set is mirrored.",
            show_default="by layout",
        ),
    ] = None
    networks: Networks = NUM_NETWORKS
    steps: EvaluationSteps = None
    learning_rate: Annotated[
        float | None, Option(help="Of the training of each.", show_default="by the set's size")
    ] = None
    width: Width = None
    bits_per_class: Annotated[
        int | None,
        Option(help="What the set takes where it is stored.", show_default="as its file says"),
    ] = None
    full: Full = True
    full_accuracy: FullAccuracy = None
    epochs: Epochs = EPOCHS
    skip_corrupt: SkipCorrupt = False
    seed: Seed = 0
    directory: Directory = None
    json_: Json = None
    markdown: Annotated[
        Path | None, Option(help="Write the table to this file too.", show_default=False)
    ] = None
    quiet: Quiet = False


def _ours(asked: JudgeOptions) -> DistillResult | Export:
    """A set of this library, whose file says everything."""
    for name in ("preprocess", "layout", "normalized", "flip"):
        if getattr(asked, name) is not None:
            raise ArgumentError(name, "is for sets of other projects: leave it out.")
    return read_set(asked.set_)


def _published(asked: JudgeOptions) -> tuple[Published, Dataset | AbstractImages]:
    """A set of another project, with the classes of its data, and the training images."""
    if asked.data is None:
        raise ArgumentError("data", "is missing: name the data that the set was distilled from.")
    preprocess = asked.preprocess
    if preprocess is not None:
        check_known("preprocess", preprocess, [*PREPROCESSING, *CONSTANTS])
    reading = Reading(asked.directory, skip_corrupt=asked.skip_corrupt, quiet=asked.quiet)
    train = load_split(asked.data, "train", reading)
    found = load_published(
        asked.set_,
        preprocess=PREPROCESSING[preprocess](train) if preprocess in PREPROCESSING else preprocess,
        layout=asked.layout,
        normalized=asked.normalized,
        flip=asked.flip,
        class_names=train.class_names,
    )
    if preprocess == "zca" and LAYOUTS[found.layout]().constants:
        warnings.warn(
            f"The authors of the layout {found.layout!r} whiten in another way. Here, "
            "--preprocess zca fits no sets but those of write_published.",
            stacklevel=2,
        )
    return found, train


def judge_command(asked: JudgeOptions) -> None:
    """Judge a distilled set against real images, and compute the scores of benchmarks."""
    found, train = (_ours(asked), None) if is_ours(asked.set_) else _published(asked)
    reading = reading_of(found, asked.directory, skip_corrupt=asked.skip_corrupt, quiet=asked.quiet)
    data, split, test, rest, _ = to_test(found, asked.data, None, reading)
    if test is None or not (split == HELD or (split == "test" and not user_path(data).is_file())):
        raise ValueError(f"{data} has no train and test split: name a set of both with --data.")
    if train is None:
        train = load_split(data, "train", reading) if rest is None else rest
    json_, markdown = (path and user_path(path) for path in (asked.json_, asked.markdown))
    for path in filter(None, (json_, markdown)):
        check_writable(path.parent)
    model = fresh_network(found, width=asked.width)
    if not asked.quiet:
        fresh = say_networks(model, asked.networks)
        echo(f"Judging on {len(test):,} images of {data} with {fresh} per row.")
    judgement = judge(
        found,
        train,
        test,
        key=evaluation_key(asked.seed),
        num_networks=asked.networks,
        model=model,
        bits_per_class=asked.bits_per_class,
        full=asked.full if asked.full_accuracy is None else asked.full_accuracy,
        epochs=asked.epochs,
        steps=asked.steps,
        learning_rate=asked.learning_rate,
        progress=not asked.quiet,
    )
    for images in ("train", "tested_on"):  # no path outside the present folder
        judgement.protocol[images]["dataset"] = shown_name(data)
    written = [judgement.save(json_)] if json_ else []
    if markdown:
        write_atomically(markdown, f"{judgement.to_markdown()}\n".encode())
        written.append(markdown)
    echo(f"\n{judgement}\n")
    if written:
        echo_paths(written)
