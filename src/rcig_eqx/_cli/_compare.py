"""The command `rcig-eqx compare`: methods on one data set, in one table and one figure."""

import dataclasses
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from typer import Argument, Exit, Option

from .._checks import ArgumentError, check_known
from ..data._paths import user_path
from ..evaluation._across import percent, pooled
from ..evaluation._report import Evaluation
from ..io._curves import Line, save_curves
from ..io._lock import hold, releasing
from ..io._plot import drawing
from ..io._result import DistillResult, load_result
from ..io._terminal import echo
from ..reproduce._plan import METHODS
from ..reproduce._report import Report
from ..run._loop import gave_up, received
from ._config import NAME, filled, read_settings
from ._distill import distill_command
from ._images import check_writable, echo_paths, read_report
from ._run_options import DistillOptions, RunOptions

_DECIDES = ("steps", "minutes", "networks", "evaluation_steps", "metric")


@dataclasses.dataclass(frozen=True)
class CompareOptions(RunOptions):
    """What `rcig-eqx compare` is asked for."""

    more: Annotated[
        list[str] | None,
        Argument(metavar="[METHOD]...", help=f"To compare: {', '.join(METHODS)}."),
    ] = None
    methods: Annotated[
        list[str] | None,
        Option("--methods", help="The same, before or after others.", show_default=False),
    ] = None
    seeds: Annotated[int, Option(min=1, help="Distilled sets per method.")] = 1
    out: Annotated[
        Path | None,
        Option(help="Folder of all runs.", show_default="runs/compare-<dataset>-<size>"),
    ] = None

    @property
    def folder(self) -> Path:
        """Of all runs."""
        return user_path(self.out or Path("runs") / f"compare-{self.name}")

    @property
    def chosen(self) -> list[str]:
        """The methods, each once. `ValueError` for one that there is not."""
        given = ",".join([*(self.methods or []), *(self.more or [])])
        names = list(dict.fromkeys(name for name in given.split(",") if name))
        for name in names:
            check_known("methods", name, METHODS)
        if not names:
            raise ArgumentError("methods", "is missing: name two, as --methods rcig frepo.")
        return names

    def run(self, method: str, seed: int) -> DistillOptions:
        """One of the runs: as asked here, the rest by its `run.toml` where there is one."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunOptions)}
        one = DistillOptions(
            **shared,
            method=None if method == "default" else method,
            seed=seed,
            out=self.folder / method / f"seed{seed}",
        )
        if not (one.folder / NAME).exists():
            return one
        named = frozenset(name for name, value in vars(one).items() if value is not None)
        return filled(dataclasses.replace(one, resume=True), named, one.folder / NAME)


@releasing()
def compare_command(asked: CompareOptions) -> None:
    """Distill one data set by several methods, and compare them in a table and a figure.

    Each run is kept in a folder of its own. The same command goes on where it was stopped; with
    more methods, seeds, minutes or networks it adds what is missing.
    """
    methods = asked.chosen
    check_writable(asked.folder)
    hold(asked.folder)
    runs = {(m, seed): asked.run(m, seed) for m in methods for seed in range(asked.seeds)}
    for number, ((method, seed), one) in enumerate(runs.items(), 1):
        there = _outcome(one) is not None
        asked.say(f"{method}, seed {seed}: run {number} of {len(runs)}{', there already' * there}")
        if not there:
            _take(one)
    found: dict[str, list[Outcome]] = {}
    for (method, _), one in runs.items():
        outcome = _outcome(one)
        assert outcome is not None
        found.setdefault(method, []).append(outcome)
    report = _report(asked, found)
    with drawing():
        _draw(asked.folder / report.pictures[0], found)
    drawn = [name for name in report.pictures if (asked.folder / name).exists()]
    written = dataclasses.replace(report, pictures=drawn).write(asked.folder)
    echo(f"\n{report}\n")
    echo_paths([*written, *(asked.folder / name for name in drawn)])


def _take(one: DistillOptions) -> None:
    """Take one run, to its end or until it diverges. `Exit` if it is stopped."""
    before = len(received)
    try:
        distill_command(one)
    except (Exit, KeyboardInterrupt) as stopped:
        if len(received) == before and one.file.exists() and gave_up(load_result(one.file).history):
            return
        echo("Stopped. All there is has been kept: the same command goes on.")
        code = getattr(stopped, "exit_code", 128 + signal.SIGINT)
        raise Exit(code) from None


Outcome = tuple[DistillResult, Evaluation | None]


def _outcome(one: DistillOptions) -> Outcome | None:
    """What a run came to, `None` if it has not ended as it is asked for now."""
    file, settings = one.folder / NAME, {}
    if one.file.exists() and file.exists():
        settings = read_settings(file, DistillOptions)
    if not settings or any(getattr(one, name) != settings.get(name) for name in _DECIDES):
        return None
    result = load_result(one.file)
    report = one.folder / "evaluation.json"
    if report.exists():
        try:
            return result, read_report(report, result)
        except ValueError:  # of the run before it was made longer
            pass
    return (result, None) if gave_up(result.history) or not result.interrupted else None


def _report(asked: CompareOptions, found: dict[str, list[Outcome]]) -> Report:
    """The table: a row per method, and one of as many random real images."""
    measures = asked.metric or []
    head = ["method", "test accuracy, %", *measures, "networks", "sets", "steps", "minutes"]
    rows, values, random = [], {}, None
    for method, outcomes in found.items():
        reports = [report for _, report in outcomes if report]
        together = pooled(reports) if reports else None
        steps = [result.recipe["steps_done"] for result, _ in outcomes]
        taken = [_minutes(result)[-1] for result, _ in outcomes]
        random = random or (together and together.baseline)
        cells = [f"{np.mean(steps):,.0f}", f"{np.mean(taken):.1f}"]
        rows.append([method, *_measured(together, measures), f"{len(outcomes)}", *cells])
        values[method] = {"steps": steps, "minutes": taken}
        values[method]["evaluation"] = together and together.to_json()
    if random:
        sets = 1 if random.sets is None else len(np.unique(random.sets))
        rows.append(["random real", *_measured(random, measures), f"{sets}", "", ""])
    wide = next(result.recipe["model"] for (result, _), *_ in found.values())
    model = ", ".join(f"{name} {value}" for name, value in wide.items())
    notes = [
        "Mean ± standard deviation over the networks of all sets. Steps and minutes: mean per set.",
        f"Distilled with: {model}.",
        *(
            f"{method}, seed {seed}, diverged after {result.recipe['steps_done']:,} steps."
            for method, outcomes in found.items()
            for seed, (result, _) in enumerate(outcomes)
            if gave_up(result.history)
        ),
        f"`{shlex.join(['rcig-eqx', *sys.argv[1:]])}`",
    ]
    title = f"{Path(asked.dataset).stem}, {asked.size}: {len(found)} methods"
    return Report("compare", title, head, rows, values, notes, ["compare.png"])


def _measured(report: Evaluation | None, measures: list[str]) -> list[str]:
    """Accuracy, metrics and number of networks."""
    if report is None:
        return ["not evaluated", *["" for _ in measures], "0"]
    others = [100 * float(np.mean(report.metrics[name])) for name in measures]
    return [percent(report), *(f"{x:.1f}" for x in others), f"{len(report.accuracies)}"]


def _minutes(result: DistillResult) -> np.ndarray:
    return np.asarray(result.history["seconds"], float) / 60


def _draw(path: Path, found: dict[str, list[Outcome]]) -> None:
    """Accuracy on the outer batches against minutes, and on the test images at the end."""
    lines = []
    for method, outcomes in found.items():
        for result, report in outcomes:
            end = None if report is None else (100 * report.mean, 100 * report.std)
            numbers = 100 * np.asarray(result.history.get("accuracy", []), float)
            lines.append(Line(method, _minutes(result), numbers, end))
    save_curves(lines, path, across="minutes", up="accuracy in training, %; points: test")
