"""Accuracies and attacks along training: as numbers, text, JSON and pictures."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..io._plot import label, matplotlib_figure, write_figure
from ._lira import LiraReport
from ._roc import Auc


@dataclasses.dataclass(frozen=True)
class PrivacyCurve:
    """Networks trained on one set: how accurate, and how well attacked, along training.

    - `accuracy`: `[networks snapshots]`, on the images that are no members, as fractions of one.
    - `auc`: `[networks snapshots]` by the attack's name, areas under the ROC curve.
    - `error`: the same for their standard errors over images.
    """

    accuracy: Float64[np.ndarray, "networks snapshots"]
    auc: dict[str, Float64[np.ndarray, "networks snapshots"]]
    error: dict[str, Float64[np.ndarray, "networks snapshots"]]

    def mean_auc(self, attack: str) -> tuple[Auc, ...]:
        """The mean over the networks, one a snapshot.

        All networks may have been attacked on the same images, so the error of images is not taken
        to shrink with their number; that of the networks is added. With networks of several
        independent chunks the interval is too wide.
        """
        if attack not in self.auc:
            raise ValueError(f"There is no attack {attack!r}: choose one of {list(self.auc)}.")
        areas, variance = self.auc[attack], (self.error[attack] ** 2).mean(0)
        if len(areas) > 1:
            variance = variance + areas.var(0, ddof=1) / len(areas)
        means = zip(areas.mean(0), variance, strict=True)
        return tuple(Auc(float(a), float(v) ** 0.5) for a, v in means)


@dataclasses.dataclass(frozen=True)
class PrivacyReport:
    """Membership inference against networks trained on several sets.

    - `steps`: training steps at each snapshot.
    - `curves`: a `PrivacyCurve` by the set's name.
    - `members`, `others`: how many images of either.
    - `settings`: how the networks were trained, in plain values.
    """

    steps: tuple[int, ...]
    curves: dict[str, PrivacyCurve]
    members: int
    others: int
    settings: dict[str, Any]

    @property
    def attacks(self) -> tuple[str, ...]:
        """The names of the attacks."""
        return tuple(next(iter(self.curves.values())).auc)

    def __str__(self) -> str:
        count = len(next(iter(self.curves.values())).accuracy)
        lines = [
            f"after {self.steps[-1]:,} steps; {count} network{'s' * (count > 1)} each; "
            f"{self.members:,} members, {self.others:,} others; attacks: area under the ROC curve "
            "(0.5 is guessing) ± half its 95% interval; accuracy ± standard deviation over networks"
        ]
        width = max(map(len, self.curves))
        lines.append(" " * width + f"{'accuracy':>18}" + "".join(f"{a:>16}" for a in self.attacks))
        for name, curve in self.curves.items():
            final = curve.accuracy[:, -1]
            spread = f" ± {final.std(ddof=1):.2%}" if count > 1 else ""
            cells = "".join(f"{curve.mean_auc(a)[-1]!s:>16}" for a in self.attacks)
            lines.append(f"{name:<{width}}{f'{final.mean():.2%}{spread}':>18}{cells}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything in it as plain values."""
        return {
            "steps": list(self.steps),
            "members": self.members,
            "others": self.others,
            "settings": self.settings,
            "curves": {
                name: {
                    "accuracy": curve.accuracy.tolist(),
                    "auc": {a: x.tolist() for a, x in curve.auc.items()},
                    "error": {a: x.tolist() for a, x in curve.error.items()},
                }
                for name, curve in self.curves.items()
            },
        }

    @classmethod
    def from_json(cls, report: dict[str, Any]) -> "PrivacyReport":
        """What `to_json` gave, read again. Raises `ValueError` for anything else."""
        try:
            curves = {
                name: PrivacyCurve(
                    np.array(curve["accuracy"], float),
                    {a: np.array(x, float) for a, x in curve["auc"].items()},
                    {a: np.array(x, float) for a, x in curve["error"].items()},
                )
                for name, curve in report["curves"].items()
            }
            counts = (report["members"], report["others"])
            return cls(tuple(report["steps"]), curves, *counts, report["settings"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"This is no privacy report: {error!r}.") from error


def join(reports: Sequence[PrivacyReport]) -> PrivacyReport:
    """One report of the networks of several, such as one of each chunk of the images.

    `ValueError` unless they have the same steps, sets, attacks, numbers of images and settings.
    """
    if not reports:
        raise ValueError("There are no reports to join.")
    first = reports[0]
    for report in reports:
        for what in ("steps", "members", "others", "attacks", "settings"):
            a, b = getattr(first, what), getattr(report, what)
            if a != b:
                raise ValueError(f"The reports have different {what}, {a} and {b}: join like ones.")
        if list(report.curves) != list(first.curves):
            raise ValueError(
                f"The reports have different sets, {list(first.curves)} and {list(report.curves)}."
            )
    curves = {}
    for name in first.curves:
        own = [report.curves[name] for report in reports]
        curves[name] = PrivacyCurve(
            np.concatenate([c.accuracy for c in own]),
            {a: np.concatenate([c.auc[a] for c in own]) for a in first.attacks},
            {a: np.concatenate([c.error[a] for c in own]) for a in first.attacks},
        )
    return dataclasses.replace(first, curves=curves)


def save_curves(
    report: PrivacyReport, path: str | os.PathLike[str], *, attack: str = "MLP", title: str = ""
) -> Path:
    """Test accuracy and an attack's AUC against training steps (Figures 3, 6 and 7 of the paper).

    Bands are the networks' standard deviation, and the 95% interval of the mean AUC. A PNG, or
    PDF by the suffix. Needs matplotlib, the extra `plot`.
    """
    for curve in report.curves.values():
        curve.mean_auc(attack)  # an unknown name is told before anything is drawn
    figure = matplotlib_figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in report.curves.items():
        accuracy = 100 * curve.accuracy
        mean, spread = accuracy.mean(0), accuracy.std(0)
        areas = curve.mean_auc(attack)
        ends = np.array([area.interval() for area in areas]).T
        for axis, centre, (low, high) in (
            (left, mean, (mean - spread, mean + spread)),
            (right, np.array([area.value for area in areas]), ends),
        ):
            (line,) = axis.plot(report.steps, centre, marker="o", markersize=3, label=label(name))
            axis.fill_between(report.steps, low, high, color=line.get_color(), alpha=0.2, lw=0)
    right.axhline(0.5, color="0.5", lw=0.8, ls=":")
    left.set(ylabel="test accuracy (%)")
    right.set(
        ylabel=label(f"AUC of the {attack} attack"), ylim=(min(0.45, right.get_ylim()[0]), 1.0)
    )
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set(xlabel="training step", xticks=report.steps)
        axis.set_xticklabels([f"{n // 1000}k" if n % 1000 == 0 else str(n) for n in report.steps])
        axis.minorticks_off()
        axis.grid(alpha=0.3, lw=0.5)
    left.legend(frameon=False)
    figure.suptitle(label(title), fontsize=12)
    return write_figure(figure, path)


def save_roc(reports: Mapping[str, LiraReport], path: str | os.PathLike[str]) -> Path:
    """ROC curves of the likelihood-ratio attack on log axes, each from its smallest rate on.

    A PNG, or PDF by the suffix. Needs matplotlib, the extra `plot`.
    """
    if not reports:
        raise ValueError("There are no reports to draw.")
    figure = matplotlib_figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    least = min(report.curve.smallest_fpr for report in reports.values())
    for name, report in reports.items():
        shown = report.curve.fpr >= report.curve.smallest_fpr
        axis.plot(report.curve.fpr[shown], report.curve.tpr[shown], label=label(name))
    axis.plot([least, 1], [least, 1], color="0.5", lw=0.8, ls=":", label="guessing")
    axis.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
    axis.set(xlabel="false-positive rate", ylabel="true-positive rate")
    axis.grid(alpha=0.3, lw=0.5)
    axis.legend(frameon=False)
    return write_figure(figure, path)
