"""The commands `rcig-eqx evaluate` and `export`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from .._checks import ArgumentError
from ..data._paths import user_path
from ..evaluation._evaluate import evaluate, fresh_network
from ..evaluation._report import Evaluation
from ..io._export import check_place, export
from ..io._result import DistillResult, load_result, result_file
from ..io._terminal import echo
from ._held_out import reading_of, to_test
from ._images import (
    check_writable,
    echo_paths,
    evaluation_key,
    load_split,
    read_report,
    say_networks,
    say_stored,
    write_report,
)
from ._options import (
    ARCHITECTURE,
    DEPTH,
    EPOCHS,
    NORMALIZATION,
    NUM_NETWORKS,
    Directory,
    Epochs,
    EvaluationSteps,
    Full,
    FullAccuracy,
    Json,
    Metrics,
    Networks,
    Quiet,
    Seed,
    SkipCorrupt,
    Width,
)
from ._page import all_data, write_page
from ._photos import Images


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What `rcig-eqx evaluate` is asked for."""

    file: Annotated[Path, Argument(help="A distilled set: a run's folder or its file.")]
    data: Annotated[
        str | None,
        Option(help="Data set to test on.", show_default="the one that was distilled"),
    ] = None
    split: Annotated[
        str | None,
        Option(
            help="Its split.", show_default="held-out images or test; all of a set of one split"
        ),
    ] = None
    networks: Networks = NUM_NETWORKS
    steps: EvaluationSteps = None
    architecture: Annotated[str | None, Option(help=ARCHITECTURE, show_default="as distilled")] = (
        None
    )
    normalization: Annotated[
        str | None, Option(help=NORMALIZATION, show_default="as distilled")
    ] = None
    width: Width = None
    depth: Annotated[int | None, Option(help=DEPTH, show_default="as distilled")] = None
    augment: Annotated[
        str | None,
        Option(
            help="Change the images at random while networks train: 'paper' for the paper's "
            "augmentation, or operations such as flip_crop.",
            show_default=False,
        ),
    ] = None
    labels: Annotated[
        Literal["learned", "hard"], Option(help="Hard ones are the class each ranks first.")
    ] = "learned"
    metric: Metrics = None
    skip_corrupt: SkipCorrupt = False
    seed: Seed = 0
    directory: Directory = None
    full: Full = False
    full_accuracy: FullAccuracy = None
    epochs: Epochs = EPOCHS
    report: Annotated[
        Path | None,
        Option(help="Write a page with pictures to this file too.", show_default=False),
    ] = None
    json_: Json = None
    quiet: Quiet = False


def evaluate_command(asked: EvaluateOptions) -> None:
    """Train fresh networks on a distilled set and test them on real images."""
    result = load_result(asked.file)
    reading = reading_of(
        result, asked.directory, skip_corrupt=asked.skip_corrupt, quiet=asked.quiet
    )
    data, split, test, rest, _ = to_test(result, asked.data, asked.split, reading)
    if test is None:
        raise ValueError(f"{data} has no test split: name other images with --data.")
    apart = rest is not None or (split != "train" and not user_path(data).is_file())
    if asked.full and asked.full_accuracy is None and not apart:
        raise ArgumentError(
            "full",
            f"has no training images: those of {data} are tested on. Name a set of both splits "
            "with --data, or pass --full-accuracy.",
        )
    json_, page = (path and user_path(path) for path in (asked.json_, asked.report))
    for path in filter(None, (json_, page)):
        check_writable(path.parent)
    model = fresh_network(
        result,
        architecture=asked.architecture,
        normalization=asked.normalization,
        width=asked.width,
        depth=asked.depth,
    )
    if not asked.quiet:
        fresh = say_networks(model, asked.networks)
        echo(f"Evaluating {say_stored(result)} on {len(test):,} images of {data} with {fresh}.")
    report = evaluate(
        result,
        test,
        key=evaluation_key(asked.seed),
        model=model,
        num_networks=asked.networks,
        steps=asked.steps,
        augment=True if asked.augment == "paper" else asked.augment,
        labels=asked.labels,
        metrics=asked.metric or (),
        progress=not asked.quiet,
    )
    written = []
    if json_:
        written.append(write_report(json_, result, report, data, split, test, asked.seed))

    def train() -> Images:
        return load_split(data, "train", reading) if rest is None else rest

    full = all_data(asked, result, train, test, asked.epochs)
    if page:
        written += write_page(page, result, report, full)
    echo(f"\n{report}\n")
    if full is not None:
        echo(
            f"All of the training data: {full.mean if isinstance(full, Evaluation) else full:.2%}\n"
        )
    if written:
        echo_paths(written)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What `rcig-eqx export` is asked for."""

    file: Annotated[Path, Argument(help="A distilled set: a run's folder or its file.")]
    folder: Annotated[
        Path | None, Argument(help="Folder to make.", show_default="export, beside the file")
    ] = None
    evaluation: Annotated[
        Path | None,
        Option(
            help="Accuracies already measured, as `distill` and `evaluate --json` write them.",
            show_default="evaluation.json beside the file; measured anew if there is none",
        ),
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier export.")] = False
    networks: Networks = NUM_NETWORKS
    steps: Annotated[
        int | None,
        Option(
            "--evaluation-steps", min=1, help="Of each network.", show_default="by the set's size"
        ),
    ] = None
    seed: Seed = 0
    directory: Directory = None
    quiet: Quiet = False


def export_command(asked: ExportOptions) -> None:
    """Write a distilled set as a folder that trains networks without this library."""
    file = result_file(asked.file)
    result = load_result(file)
    folder = user_path(asked.folder or file.parent / "export")
    check_place(folder, asked.overwrite, fix="pass --overwrite")
    check_writable(folder.parent)
    beside = file.parent / "evaluation.json"
    known = asked.evaluation or (beside if beside.exists() else None)
    report = None
    if known:
        known = user_path(known)
        report = read_report(known, result)
        if not asked.quiet:
            echo(f"The card states the accuracies in {known}.")
    else:
        report = _measured(asked, result)
    echo_paths([export(result, folder, evaluation=report, overwrite=asked.overwrite)])


def _measured(asked: ExportOptions, result: DistillResult) -> Evaluation | None:
    """Accuracies for the card, `None` where what was distilled has no test split."""
    reading = reading_of(result, asked.directory, skip_corrupt=False, quiet=asked.quiet)
    data, _, test, *_ = to_test(result, None, None, reading)
    if test is None:
        if not asked.quiet:
            echo(f"{data} has no test split: the card states no accuracy.")
        return None
    if not asked.quiet:
        fresh = say_networks(fresh_network(result), asked.networks)
        echo(f"Evaluating {say_stored(result)} on {len(test):,} images of {data} with {fresh}.")
    return evaluate(
        result,
        test,
        key=evaluation_key(asked.seed),
        num_networks=asked.networks,
        steps=asked.steps,
        progress=not asked.quiet,
    )
