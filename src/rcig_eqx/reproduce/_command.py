"""`rcig-eqx reproduce`: a table or figure of the paper, by name."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import jax
from typer import Argument, Exit, Option, echo

from .._devices import first_devices
from ..data import DataError
from ..data._sources import SPLITS
from ..models._normalize import check_known
from ._dry import dry_run
from ._figures import FIGURES
from ._plan import METHODS, SCALES, SETTINGS
from ._report import Report, counted
from ._rows import ROWS, TABLE_3, Row
from ._tables import METHODS_TAKEN_APART, TABLES, find_rows, normalized
from ._workshop import Interrupted, Workshop

TARGETS = {name: rows for name, (_, rows) in (TABLES | FIGURES).items()}
OWN_METHODS = {"table1": "each", "figure1": "rcig_paper", "figure2": "rcig_paper"}
# What else than the workshop's method and the row's network a target distils by.
WAYS: dict[str, list[dict[str, str]]] = {
    "table1": [{"method": method} for method in METHODS_TAKEN_APART],
    "table3": [normalized(kind) for kind in TABLE_3],
    "figure1": [{"method": "rcig_paper"}],
    "figure2": [{"method": "rcig_paper"}],
}


def reproduce(
    target: Annotated[str, Argument(help=f"One of {', '.join(TARGETS)}; or rows, to list them.")],
    rows: Annotated[
        list[str] | None,
        Option(
            "--rows",
            help="Such as fashion_mnist/1; may be given several times, or comma-separated.",
            show_default="the paper's",
        ),
    ] = None,
    scale: Annotated[
        str | None,
        Option(
            help=f"{' or '.join(SCALES)}.", show_default="paper on an accelerator, small on a CPU"
        ),
    ] = None,
    method: Annotated[str, Option(help=f"One of {', '.join(METHODS)}.")] = "default",
    settings: Annotated[
        str, Option(help=f"Optimiser, pool, average, batch: one of {', '.join(SETTINGS)}.")
    ] = "library",
    out: Annotated[Path, Option(help="Folder of runs and results.")] = Path("runs/reproduce"),
    seeds: Annotated[int | None, Option(min=1, help="Distilled sets of a row.")] = None,
    networks: Annotated[int | None, Option(min=1, help="Evaluated on each set.")] = None,
    steps: Annotated[int | None, Option(min=1, help="Outer iterations.")] = None,
    width: Annotated[int | None, Option(min=1, help="Filters of the first block.")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Real images a step.")] = None,
    pool: Annotated[int | None, Option(min=1, help="Networks of the pool.")] = None,
    evaluation_steps: Annotated[
        int | None, Option(min=1, help="Of a network evaluated or attacked.")
    ] = None,
    devices: Annotated[
        int | None, Option(min=1, help="Share every batch among so many.", show_default="one")
    ] = None,
    workers: Annotated[
        int, Option(min=0, help="Processes that read a set on disk ahead; threads if 0.")
    ] = 0,
    directory: Annotated[
        Path | None, Option(help="Folder to look for data sets in first.", show_default=False)
    ] = None,
    dry: Annotated[
        bool, Option("--dry-run", help="Say what each row takes: compiles a step, runs none.")
    ] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print the outcome only.")] = False,
) -> None:
    """Run a table or figure of the paper, and print it with the paper's numbers beside.

    Every distilled set and accuracy is filed in the folder as soon as it is there: interrupted, the
    same command goes on, and with more seeds it adds what is missing.
    """
    names = [name for given in rows or [] for name in given.split(",")]
    if target == "rows":
        for row in find_rows(names or list(ROWS)):
            mean, spread = row.paper
            echo(f"{row.name:<20} {row.steps:>6,} steps, paper {mean:.1f} ± {spread:.1f}")
        return
    check_known("target", target, [*TARGETS, "rows"])
    scale = scale or ("small" if jax.default_backend() == "cpu" else "paper")
    check_known("scale", scale, SCALES)
    check_known("method", method, METHODS)
    check_known("settings", settings, SETTINGS)
    if target in OWN_METHODS and method != "default":
        raise ValueError(f"{target} is of a method of its own: leave --method out.")
    shown = OWN_METHODS.get(target, method)
    chosen = find_rows(names or TARGETS[target])
    changed = {"seeds": seeds, "networks": networks, "steps": steps, "width": width}
    changed |= {"batch_size": batch_size, "pool": pool, "evaluation_steps": evaluation_steps}
    workshop = Workshop(
        out / "sets",
        SCALES[scale].changed(**changed),
        method,
        settings,
        directory,
        first_devices(devices),
        workers,
        say=(lambda text: None) if quiet else echo,
        progress=not quiet,
    )
    if dry:
        for row in chosen:
            for how in WAYS.get(target, [{}]):
                _echo_dry(row, workshop, how)
        return
    scaled = workshop.scale
    workshop.say(
        f"{target}, {counted(len(chosen), 'row')} at scale {scaled.name}, method {shown}: "
        f"{counted(scaled.seeds, 'set')} a row, {counted(scaled.networks, 'network')} on each. "
        "--dry-run says what each takes; Ctrl-C stops, and the same command goes on."
    )
    folder = out / "-".join([scaled.name, shown, *[settings] * (settings != "library")])
    if names:
        folder /= _folder_of(names)
    try:
        report = run(target, workshop, chosen, folder)
    except (Interrupted, KeyboardInterrupt):
        echo("Stopped. All there is has been kept: the same command goes on.")
        raise Exit(130) from None
    command = f"`{shlex.join(['rcig-eqx', *sys.argv[1:]])}`"
    report = dataclasses.replace(report, notes=[*report.notes, *workshop.remarks, command])
    echo(f"\n{report}\n")
    report.write(folder)
    echo("Wrote " + "\n      ".join(map(str, sorted(folder.glob(f"{target}[-.]*")))))


def run(target: str, workshop: Workshop, rows: list[Row], folder: Path) -> Report:
    """The report of a table or figure; pictures are written into the folder."""
    try:  # a set that is nowhere is told before hours of work; first, one none can download
        for row in sorted(rows, key=lambda row: row.dataset != "imagenet64"):
            for split in SPLITS:
                workshop.data(row, split)
    except DataError as error:
        raise DataError(f"{error} Or leave its rows out: --rows names those to run.") from error
    folder.mkdir(parents=True, exist_ok=True)
    if target in TABLES:
        return TABLES[target][0](workshop, rows)
    return FIGURES[target][0](workshop, rows, folder)


def _folder_of(rows: list[str]) -> str:
    """Where a table of some rows is written, so that one of others stays."""
    name = "+".join(row.replace("/", "-") for row in rows)
    return name if len(name) <= 100 else f"{len(rows)}-rows"


def _echo_dry(row: Row, workshop: Workshop, how: dict[str, str]) -> None:
    named = {"method": workshop.method} | how
    echo(f"{row.name}, {', '.join(named.values())}, {workshop.scale.name}:")
    for name, value in dry_run(row, workshop, **how).items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        echo(f"  {name:<12} {shown}")
