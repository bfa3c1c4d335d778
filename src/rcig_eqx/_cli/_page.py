"""The page of a run that the commands write, and what stands on it beside the evaluation."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer import Exit

from ..evaluation import Evaluation, evaluate_full
from ..io._plot import drawing
from ..io._report import save_report
from ..io._result import DistillResult
from ..io._terminal import echo
from ._held_out import Split
from ._images import echo_paths, evaluation_key
from ._options import EPOCHS, command_of
from ._photos import Images

_ELSEWHERE = ("out", "overwrite", "resume", "config", "checkpoint_every", "directory", "quiet")


def repeating(asked: Any, dataset: str) -> str:
    """The command that makes the same set again, wherever it is written to."""
    usual = {name: type(asked).__dataclass_fields__[name].default for name in _ELSEWHERE}
    return command_of("distill", asked, dataset=dataset, **usual)


def all_data(
    asked: Any,
    result: DistillResult,
    train: Callable[[], Images],
    test: Images,
    epochs: int = EPOCHS,
) -> Evaluation | float | None:
    """The accuracy of all of the training data: as asked for, known or measured."""
    if asked.full_accuracy is not None or not asked.full:
        return asked.full_accuracy
    return evaluate_full(
        result,
        train(),
        test,
        key=evaluation_key(asked.seed),
        num_networks=asked.networks,
        epochs=epochs,
        progress=not asked.quiet,
    )


def write_page(
    path: Path,
    result: DistillResult,
    evaluation: Evaluation | None = None,
    full: Evaluation | float | None = None,
) -> list[Path]:
    """The page, or a warning in its place: what it is of is worth more."""
    with drawing(but=OSError, what="report"):
        return [save_report(path, result, evaluation, full=full)]
    return []


def page_of_run(
    asked: Any, result: DistillResult, report: Evaluation, split: Split, written: list[Path]
) -> list[Path]:
    """The page of a run that has been evaluated, all of the data included where asked for."""
    test, train = split.test, split.train
    assert test is not None, "there are test images"
    assert train is not None, "it was distilled"
    try:
        full = all_data(asked, result, lambda: train, test)
    except KeyboardInterrupt:
        echo("Training on all of the data stopped. The rest is kept:")
        echo_paths([*written, *write_page(asked.folder, result, report)])
        raise Exit(128 + signal.SIGINT) from None
    return write_page(asked.folder, result, report, full)
