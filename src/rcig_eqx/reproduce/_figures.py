"""The paper's figures, each a function from a workshop, rows and a folder to a `Report`.

Every one writes a PNG and a PDF beside the table of its numbers.
"""

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..evaluation._across import percent
from ..evaluation._report import Evaluation
from ..io._plot import drawing, matplotlib_figure, save_grid, write_figure
from ..io._result import load_result
from ..run._memory import estimate_memory
from ..solvers import Adam
from ._plan import Scale, arguments, model_of
from ._report import Report
from ._rows import Row
from ._tables import Rows, Ways, networks_of, normalized, notes, run_notes, title_of
from ._workshop import Workshop, parts_of, typical

SUBSETS = (0.04, 0.1, 0.2, 0.4, 1.0)  # of |S|: 200, 500, 1,000, 2,000 and 5,000 of 5,000
ALONG = "-along"  # the set of Figure 8 is filed so, with those on the way to it
WIDTHS = (16, 32, 64, 128, 256, 512)
TIMED = 6  # iterations of a timed run; the first one compiles
# What its text and captions say (sections 4.4 and A, Figure 1), on an RTX A6000.
_PAPER_1 = (
    "The paper: 10.33 ms for an inner step and as many for an inverse-Hessian step on cifar100/1 "
    "and cifar10/10, 1.67 ms on cifar10/1; 150 to 760 ms an iteration on cifar100/1."
)
_PAPER_2 = (
    "The paper: without inverse-Hessian steps inner ones cost accuracy; with some, both gain."
)
_PAPER_5 = (
    "The paper, cifar100/50: from 45.9 ± 0.4% and 10.0 GB with 200 of 5,000 images to "
    "47.3 ± 0.3% and 26.7 GB with all."
)


Cell = tuple[float, str, Any]  # what is drawn, what stands in the table, what is filed


def figure1(workshop: Workshop, rows: Rows, folder: Path) -> Report:
    """Time of an iteration against inner and inverse-Hessian steps."""
    scale = workshop.scale.changed(steps=TIMED)
    timed = dataclasses.replace(workshop, scale=scale, method="rcig_paper")

    def milliseconds(row: Row, inner: int, inverse: int) -> Cell:
        ms = 1e3 * typical(timed.seconds(row, **_counts(row, timed, inner, inverse)))
        return ms, f"{ms:.1f}", ms

    title = "Figure 1: milliseconds of an iteration"
    median = f"Median of the last {TIMED // 2} of {TIMED} iterations."
    how = [median, _PAPER_1, run_notes(timed, rows)]
    return _grid(timed, rows, folder, "figure1", title, milliseconds, "ms an iteration", how)


def figure2(workshop: Workshop, rows: Rows, folder: Path) -> Report:
    """Accuracy against inner and inverse-Hessian steps."""

    def accuracy(row: Row, inner: int, inverse: int) -> Cell:
        how = _counts(row, workshop, inner, inverse)
        report = workshop.accuracy(row, augment=row.augment, **how)
        return 100 * report.mean, percent(report), report.to_json()

    workshop = dataclasses.replace(workshop, method="rcig_paper")
    title = "Figure 2: test accuracy in %"
    how = [_PAPER_2, *notes(workshop, rows)]
    return _grid(workshop, rows, folder, "figure2", title, accuracy, "test accuracy, %", how)


def _counts(row: Row, workshop: Workshop, inner: int, inverse: int) -> dict[str, Any]:
    """The paper's method with other numbers of steps, and what its run is filed under."""
    given = arguments(row, workshop.scale, "rcig_paper", workshop.settings)
    steps = {"inner": Adam(steps=inner), "solver": Adam(steps=inverse)}
    method = dataclasses.replace(given["method"], **steps)
    return {"variant": f"-{inner}x{inverse}", "changed": {"method": method}}


def grid_ways(row: Row, scale: Scale) -> Ways:
    """What the sets of Figures 1 and 2 are filed under."""
    each = itertools.product(scale.counts, scale.counts)
    return [{"method": "rcig_paper", "variant": f"-{i}x{j}"} for i, j in each]


def _grid(
    workshop: Workshop,
    rows: Rows,
    folder: Path,
    name: str,
    title: str,
    measure: Callable[[Row, int, int], Cell],
    label: str,
    how: list[str],
) -> Report:
    counts = workshop.scale.counts
    workshop.say(f"{name}: {len(counts)} x {len(counts)} numbers of steps for each row")
    lines, heights, values = [], {}, {row.name: {i: {} for i in counts} for row in rows}
    for row, inner in itertools.product(rows, counts):
        cells = [measure(row, inner, inverse) for inverse in counts]
        heights[row.name, inner], texts, found = zip(*cells, strict=True)
        lines.append([row.name, str(inner), *texts])
        values[row.name][inner] = dict(zip(counts, found, strict=True))
    with drawing(), _panels(len(rows), folder / name) as axes:
        for axis, row in zip(axes, rows, strict=True):
            for inner in counts:
                axis.plot(counts, heights[row.name, inner], "o-", markersize=3, label=str(inner))
            # The direct gradient alone, marked as in the paper, and what it takes everywhere.
            for both, mark, size, order in ((0, "ro", 9, 0), (20, "g*", 14, 2)):
                if both in counts:
                    height = heights[row.name, both][counts.index(both)]
                    axis.plot(both, height, mark, markersize=size, zorder=order)
            axis.set(title=title_of(row), xlabel="inverse-Hessian steps", ylabel=label)
        beside = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
        axes[-1].legend(title="inner steps", fontsize=8, **beside)
    head = ["Row", "Inner steps", *(f"{j} inverse" for j in counts)]
    return Report(name, title, head, lines, values, how, [f"{name}.png"])


def figure5(workshop: Workshop, rows: Rows, folder: Path) -> Report:
    """Memory, time and accuracy against the images of the backward pass."""
    lines, values = [], {}
    for row in rows:
        for subset, how in _subsets(row).items():
            whole = subset == row.mirrored_images
            of_part = dataclasses.replace(row, subset=None if whole else subset)
            report = workshop.accuracy(of_part, augment=row.augment, **how)
            seconds = typical(workshop.seconds(of_part, **how))
            megabytes = estimate_memory(*parts_of(of_part, workshop)).total / 1e6
            values[f"{row.name} {subset}"] = {
                "subset": subset, "MB": megabytes, "seconds": seconds, "accuracy": report.to_json(),
            }  # fmt: skip
            numbers = [f"{megabytes:,.0f}", f"{seconds:.3f}", percent(report)]
            lines.append([row.name, f"{subset:,} of {row.mirrored_images:,}", *numbers])
    with drawing(), _panels(3, folder / "figure5") as axes:
        for row in rows:
            mine = [v for k, v in values.items() if k.startswith(row.name + " ")]
            at = [v["subset"] for v in mine]
            accuracies = [100 * v["accuracy"]["mean"] for v in mine]
            ys = [[v["MB"] for v in mine], [v["seconds"] for v in mine], accuracies]
            labels = ("peak memory, MB", "seconds an iteration", "test accuracy, %")
            for axis, y, label in zip(axes, ys, labels, strict=True):
                axis.plot(at, y, "o-", label=title_of(row))
                axis.set(xlabel="images of the backward pass", ylabel=label)
        for axis in axes[:2]:
            axis.set_ylim(0, 1.1 * axis.dataLim.y1)
        axes[0].legend(fontsize=8)
    head = ["Row", "Backward pass", "MB", "s/iteration", "Accuracy"]
    title = "Figure 5: the backward pass through part of the images"
    more = ["Memory is `estimate_memory`'s.", _PAPER_5, *notes(workshop, rows)]
    return Report("figure5", title, head, lines, values, more, ["figure5.png"])


def _subsets(row: Row) -> dict[int, dict[str, Any]]:
    """Images of the backward pass, and what a set distilled so is filed under."""
    sizes = sorted({max(1, round(part * row.mirrored_images)) for part in SUBSETS})
    return {size: {"variant": f"-subset{size}"} for size in sizes}


def subset_ways(row: Row, scale: Scale) -> Ways:
    """What the sets of Figure 5 are filed under."""
    return list(_subsets(row).values())


def figure8(workshop: Workshop, rows: Rows, folder: Path) -> Report:
    """Accuracy against wall-clock time, and memory against width."""
    lines, values = [], {}
    for row in rows:
        series = [
            {"step": step, "seconds": seconds, "accuracy": report.to_json()}
            for step, seconds, report in _along(workshop, row)
        ]
        memory = {}
        for width in WIDTHS:
            scale = dataclasses.replace(workshop.scale, width=width)
            parts = parts_of(row, dataclasses.replace(workshop, scale=scale))
            memory[width] = estimate_memory(*parts).total / 1e6
        values[row.name] = {"accuracy": series, "MB by width": memory}
        for point in series:
            texts = [f"{point['seconds']:.1f}", f"{100 * point['accuracy']['mean']:.1f}"]
            lines.append([row.name, f"{point['step']:,}", *texts, ""])
        lines += [[row.name, f"width {w}", "", "", f"{mb:,.0f}"] for w, mb in memory.items()]
    with drawing(), _panels(3, folder / "figure8") as axes:
        for row in rows:
            series, memory = values[row.name]["accuracy"], values[row.name]["MB by width"]
            at = [p["seconds"] for p in series]
            means = [100 * p["accuracy"]["mean"] for p in series]
            for axis, first in zip(axes[:2], (0, 1), strict=True):  # 0 s has no logarithm
                axis.plot(at[first:], means[first:], "o-", markersize=3, label=title_of(row))
                axis.set(xlabel="seconds of distilling", ylabel="test accuracy, %")
            axes[2].plot(list(memory), list(memory.values()), "o-")
        axes[1].set_xscale("log")
        axes[2].set(xlabel="width", ylabel="memory of a step, MB", xscale="log", yscale="log")
        axes[2].set_xticks(WIDTHS, list(map(str, WIDTHS)))
        axes[2].set_xticks([], minor=True)
        axes[0].legend(fontsize=8)
    head = ["Row", "Iterations", "Seconds", "Accuracy", "MB"]
    title = "Figure 8: accuracy against wall-clock time, memory against width"
    more = [
        "One set; seconds are from the end of its first iteration, which compiles. "
        f"{networks_of(workshop.scale, rows)} a point, trained for "
        f"{max(map(workshop.scale.evaluation_steps_of, rows)):,} steps at most.",
        run_notes(workshop, rows),
    ]
    return Report("figure8", title, head, lines, values, more, ["figure8.png"])


def _along(workshop: Workshop, row: Row) -> Iterator[tuple[int, float, Evaluation]]:
    """Step, seconds and accuracy at 1, 2, 5, 10, 20, 50, … steps of one run, and at its end."""
    folder = workshop.place(row, 0, variant=ALONG)
    steps = workshop.scale.steps_of(row)
    marks = sorted({m * 10**e for e in range(7) for m in (1, 2, 5) if m * 10**e < steps} | {steps})

    def keep(progress: Any) -> None:
        if progress.step in marks:
            folder.mkdir(parents=True, exist_ok=True)
            progress.result().save(folder / f"after-{progress.step}.safetensors")

    def distilled() -> Any:
        run = workshop.distilled(row, variant=ALONG, changed={"callbacks": (keep,)})
        return run.history["seconds"]

    clock = distilled()
    marks = [mark for mark in marks if mark <= len(clock)]  # a run that gave up has fewer
    if not all((folder / f"after-{mark}.safetensors").exists() for mark in marks):
        shutil.rmtree(folder)  # killed between a checkpoint and a file: once more, from the start
        clock = distilled()
    model = model_of(row, workshop.scale, softplus=None)
    for mark in marks:
        result = load_result(folder / f"after-{mark}.safetensors")
        report = workshop.evaluated(row, result, f"after-{mark}", folder, model=model)
        yield mark, float(clock[mark - 1] - clock[0]), report


def gallery(workshop: Workshop, rows: Rows, folder: Path) -> Report:
    """Pictures of the distilled sets (Figures 9 to 19)."""
    lines, names = [], []
    sets = [(row, how) for row in rows for how in gallery_ways(row, workshop.scale)]
    for row, how in sets:
        result = workshop.distilled(row, **how)
        name, title = f"gallery-{row.name.replace('/', '-')}", title_of(row)
        if normalization := how.get("normalization"):
            name, title = f"{name}-{normalization}", f"{title}, {normalization} normalization"
        for kind in (".png", ".pdf"):
            with drawing():
                save_grid(result.coreset, result.class_names, folder / (name + kind), title=title)
        names.append(f"{name}.png")
        lines.append([row.name, f"{name}.png and .pdf"])
    title, head = "Distilled sets (of Figures 9 to 19)", ["Row", "Picture"]
    return Report("gallery", title, head, lines, {}, [run_notes(workshop, rows)], names)


def gallery_ways(row: Row, scale: Scale) -> Ways:
    """The row's set, and that of Figure 15 with batch normalization."""
    return [{}, *[normalized("batch")] * (row.name == "cifar10/10")]


@contextlib.contextmanager
def _panels(count: int, path: Path) -> Iterator[list[Any]]:
    """Axes side by side, written as PNG and PDF at the end."""
    figure = matplotlib_figure(figsize=(3.6 * count + 0.4, 3.2), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    yield axes
    for axis in axes:
        axis.grid(alpha=0.3)
    for suffix in (".png", ".pdf"):
        write_figure(figure, path.with_suffix(suffix))
