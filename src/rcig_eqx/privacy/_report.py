"""Accuracies and attacks along training: as numbers, as text, and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

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
