"""Pictures of attacks: along training as the paper's Figure 6, and ROC curves on log axes."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..io._plot import label, matplotlib_figure, write_figure
from ._lira import LiraReport
from ._report import PrivacyReport


def save_curves(
    report: PrivacyReport, path: str | os.PathLike[str], *, attack: str = "MLP", title: str = ""
) -> Path:
    """Test accuracy and an attack's AUC against training steps (Figures 3, 6 and 7 of the paper).

    Bands are the networks' standard deviation, and the 95% interval of the mean AUC. A PNG, or
    PDF by the suffix. Needs matplotlib, the extra `plot`.
    """
    for curve in report.curves.values():
        curve.mean_auc(attack)  # a name that is none is told before anything is drawn
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
