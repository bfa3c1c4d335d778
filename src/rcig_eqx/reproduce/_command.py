"""`rcig-eqx reproduce`: a table or figure of the paper, by name."""

import dataclasses
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import jax
from typer import Argument, Exit, Option

from .._checks import ArgumentError, check_known
from ..data import DataError
from ..data._load import check_directory
from ..data._paths import user_path
from ..data._sources import SPLITS
from ..io._terminal import echo
from ..run._devices import first_devices
from ..run._loop import received
from ._plan import METHODS, SCALES, SETTINGS
from ._report import Report, counted
from ._rows import ROWS, Row
from ._tables import Ways, networks_of
from ._targets import TARGETS, Target, find_rows
from ._workshop import BUNDLED, Interrupted, Workshop, dry_run

_ROWS = "Such as fashion_mnist/1; may be given several times, or comma-separated."
_SCALE = "paper on an accelerator, small on a CPU"


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """What `rcig-eqx reproduce` is asked for."""

    target: Annotated[str, Argument(help=f"One of {', '.join(TARGETS)}; or rows, to list them.")]
    rows: Annotated[list[str] | None, Option("--rows", help=_ROWS, show_default="the paper's")] = (
        None
    )
    scale: Annotated[str | None, Option(help=f"{' or '.join(SCALES)}.", show_default=_SCALE)] = None
    method: Annotated[str, Option(help=f"One of {', '.join(METHODS)}.")] = "default"
    settings: Annotated[
        str, Option(help=f"Optimizer, pool, average, batch: one of {', '.join(SETTINGS)}.")
    ] = "library"
    out: Annotated[Path, Option(help="Folder of runs and results.")] = Path("runs/reproduce")
    seeds: Annotated[int | None, Option(min=1, help="Distilled sets of a row.")] = None
    networks: Annotated[int | None, Option(min=1, help="Evaluated on each set.")] = None
    steps: Annotated[int | None, Option(min=1, help="Outer iterations.")] = None
    width: Annotated[int | None, Option(min=1, help="Filters of the first block.")] = None
    batch_size: Annotated[int | None, Option(min=1, help="Real images per step.")] = None
    pool: Annotated[int | None, Option(min=1, help="Networks of the pool.")] = None
    evaluation_steps: Annotated[
        int | None, Option(min=1, help="Of a network evaluated or attacked.")
    ] = None
    devices: Annotated[
        int | None, Option(min=1, help="Share every batch among so many.", show_default="one")
    ] = None
    workers: Annotated[
        int, Option(min=0, help="Processes that read a set on disk ahead; threads if 0.")
    ] = 0
    directory: Annotated[
        Path | None, Option(help="Folder to look for data sets in first.", show_default=False)
    ] = None
    bundled: Annotated[
        bool,
        Option("--bundled", help="Take the small Fashion-MNIST that comes along; its rows alone."),
    ] = False
    dry: Annotated[
        bool, Option("--dry-run", help="Say what each row takes: compiles a step, runs none.")
    ] = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print the outcome only.")] = False


def reproduce(asked: ReproduceOptions) -> None:
    """Run a table or figure of the paper, and print it with the paper's numbers beside.

    Every distilled set and accuracy is filed in the folder as soon as it is there: interrupted, the
    same command goes on, and with more seeds it adds what is missing.
    """
    names = list(dict.fromkeys(name for given in asked.rows or [] for name in given.split(",")))
    if asked.target == "rows":
        for row in find_rows(names or list(ROWS)):
            mean, spread = row.paper
            of = ", ".join(name for name, made in TARGETS.items() if row.name in made.rows)
            echo(f"{row.name:<18}{row.steps:>6,} steps, paper {mean:.1f} ± {spread:.1f}   {of}")
        return
    wanted, workshop = _wanted(asked), _workshop(asked)
    chosen = find_rows(names or _usual_rows(asked, wanted))
    _check_bundled(asked, chosen)
    if asked.dry:
        workshop.say("Compiling a step of each kind; a large one takes minutes.")
        for number, row in enumerate(chosen, 1):
            workshop.say(f"{row.name}, row {number} of {len(chosen)}")
            _echo_dry(row, workshop, wanted)
        return
    shown = wanted.method or asked.method
    scale = workshop.scale
    there = [file.exists() for row in chosen for file in wanted.files(row, workshop)]
    filed = f" ({sum(there)} filed already)" if any(there) else ""
    networks_each = networks_of(scale, chosen, attacked=wanted.attacked)
    each = f", {networks_each} an evaluation" if wanted.evaluated else ""
    workshop.say(
        f"{asked.target}, {counted(len(chosen), 'row')} at scale {scale.name}, method {shown}: "
        f"{counted(len(there), 'set')}{filed}{each}. --dry-run says what each takes; Ctrl-C stops, "
        "and the same command goes on."
    )
    # Sets are filed apart by what the scale's name says; their tables by what is asked of them too.
    apart = {name: getattr(asked, name) for name in ("seeds", "networks", "evaluation_steps")}
    of = [f"{name}{number}" for name, number in apart.items() if number is not None]
    settings = [asked.settings] * (asked.settings != "library") + ["bundled"] * asked.bundled
    folder = user_path(asked.out) / "-".join([scale.name, *of, shown, *settings])
    if names:  # a table of some rows stays beside one of others
        name = "+".join(row.replace("/", "-") for row in names)
        folder /= name if len(name) <= 100 else f"{len(names)}-rows"
    try:
        report = run(wanted, workshop, chosen, folder)
    except (Interrupted, KeyboardInterrupt) as stopped:
        echo("Stopped. All there is has been kept: the same command goes on.")
        by_hand = isinstance(stopped, KeyboardInterrupt) or not received
        raise Exit(128 + (signal.SIGINT if by_hand else received[-1])) from None
    drawn = [name for name in report.pictures if (folder / name).exists()]
    command = f"`{shlex.join(['rcig-eqx', *_shown(sys.argv[1:])])}`"
    notes = [*report.notes, *workshop.remarks, command]
    report = dataclasses.replace(report, notes=notes, pictures=drawn)
    report.write(folder)
    echo(f"\n{report}\n")
    echo("Wrote " + "\n      ".join(map(str, sorted(folder.glob(f"{asked.target}[-.]*")))))


_CHANGED = ("seeds", "networks", "steps", "width", "batch_size", "pool", "evaluation_steps")


def _wanted(asked: ReproduceOptions) -> Target:
    """The table or figure. `ValueError` for what there is not, or what it leaves no choice of."""
    check_known("target", asked.target, [*TARGETS, "rows"])
    wanted = TARGETS[asked.target]
    for name, own in (("method", asked.method != "default"), ("steps", asked.steps)):
        if own and (fixed := getattr(wanted, name)):
            raise ArgumentError(name, f"is {fixed} of {asked.target}: leave it out.")
    return wanted


def _usual_rows(asked: ReproduceOptions, wanted: Target) -> list[str]:
    """The target's rows, or those that the bundled set has images for."""
    return [name for name in wanted.rows if not asked.bundled or ROWS[name].dataset in BUNDLED]


def _check_bundled(asked: ReproduceOptions, chosen: list[Row]) -> None:
    """Raise `ValueError` for rows that the bundled set is no part of."""
    others = [row.name for row in chosen if row.dataset not in BUNDLED]
    if asked.bundled and (others or not chosen):
        raise ArgumentError(
            "bundled",
            f"has no images for {', '.join(others) or asked.target}: leave it out, or choose rows "
            f"of {', '.join(BUNDLED)}.",
        )


def _workshop(asked: ReproduceOptions) -> Workshop:
    """Where its sets are made and filed."""
    scale = asked.scale or ("small" if jax.default_backend() == "cpu" else "paper")
    check_known("scale", scale, SCALES)
    check_known("method", asked.method, METHODS)
    check_known("settings", asked.settings, SETTINGS)
    directory = asked.directory and user_path(asked.directory)
    check_directory(directory)
    return Workshop(
        user_path(asked.out) / ("sets-bundled" if asked.bundled else "sets"),
        SCALES[scale].changed(**{name: getattr(asked, name) for name in _CHANGED}),
        asked.method,
        asked.settings,
        directory,
        first_devices(asked.devices),
        asked.workers,
        say=(lambda text: None) if asked.quiet else echo,
        progress=not asked.quiet,
        bundled=asked.bundled,
    )


def _shown(arguments: list[str]) -> list[str]:
    """A command without the folders of this machine."""
    paths = ("--out", "--directory")
    pairs = zip(["", *arguments], arguments, strict=False)
    return [now for before, now in pairs if not (before in paths or now.split("=")[0] in paths)]


def run(target: Target, workshop: Workshop, rows: list[Row], folder: Path) -> Report:
    """The report of a table or figure; pictures are written into the folder."""
    missing: dict[str, Exception] = {}  # told before hours of work
    splits = SPLITS if target.evaluated else ("train",)
    # ImageNet last: it is written to disk, for which there is no reason where others are missing.
    each = {row.dataset: row for row in sorted(rows, key=lambda row: row.dataset == "imagenet64")}
    for name, row in each.items():
        if name == "imagenet64" and missing:
            break
        try:
            for split in splits:
                workshop.data(row, split)
        except (DataError, ImportError) as error:
            missing[name] = error
    if missing:
        told = " ".join(f"({i}) {error}" for i, error in enumerate(missing.values(), 1))
        raise DataError(
            f"{counted(len(missing), 'data set')} cannot be had. {told} Or leave the rows of "
            f"{', '.join(missing)} out, with --rows."
        ) from next(iter(missing.values()))
    folder.mkdir(parents=True, exist_ok=True)
    return target.make(workshop, rows, folder)


def _echo_dry(row: Row, workshop: Workshop, target: Target) -> None:
    """What each kind of the row's sets takes; a step of each kind is compiled."""
    workshop = dataclasses.replace(workshop, scale=target.scale(workshop.scale))
    scale, attacked = workshop.scale, target.attacked
    kinds: dict[tuple[str, str | None], Ways] = {}
    for way in target.ways_of(row, scale):
        method = scale.method(row, way.get("method", workshop.method))
        kinds.setdefault((method, way.get("normalization")), []).append(way)
    for (method, normalization), ways in kinds.items():
        echo(f"{row.name}, {', '.join(filter(None, (method, normalization)))}, {scale.name}:")
        there = [file.exists() for file in target.files(row, workshop, ways)]
        values = dry_run(row, workshop, method=method, normalization=normalization)
        values |= {"sets": len(there), "filed already": sum(there)}
        if target.evaluated:
            trained = f"for {scale.evaluation_steps_of(row, attacked=attacked):,} steps"
            networks = scale.networks_of(row, attacked=attacked)
            values["networks"] = f"{networks} an evaluation, {trained}"
        for name, value in values.items():
            number = isinstance(value, int) and not isinstance(value, bool)
            echo(f"  {name:<13} {f'{value:,}' if number else value}")
