"""Accuracies measured: as numbers, as text, and as JSON."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float64


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Test accuracies of several networks trained on one distilled set, as fractions of one.

    - `accuracies`: `[networks]`.
    - `per_class`: `[networks classes]`; NaN for a class without test images.
    - `class_names`: one a class.
    - `steps`: training steps of each network.
    - `baseline`: the same for as many random real images, where they are known.
    - `training`: how the networks were trained, as [`training_recipe`][rcig_eqx.training_recipe]
      says it.
    - `tested_on`: the test set's name, its number of images, and the key, in plain values.
    """

    accuracies: Float64[np.ndarray, " networks"]
    per_class: Float64[np.ndarray, "networks classes"]
    class_names: tuple[str, ...]
    steps: int
    baseline: "Evaluation | None" = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    tested_on: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean accuracy over the networks."""
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation over the networks; 0 for one network."""
        return float(self.accuracies.std(ddof=1)) if len(self.accuracies) > 1 else 0.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean over networks, by Student's t.

        Of one distilled set it does not know how sets differ from seed to seed: pool several. NaN
        for one network.
        """
        from scipy.special import stdtrit  # slow to import, and needed here alone

        n = len(self.accuracies)
        if n < 2:
            return math.nan, math.nan
        reach = float(stdtrit(n - 1, (1 + level) / 2)) * self.std / math.sqrt(n)
        return self.mean - reach, self.mean + reach

    @property
    def _summary(self) -> str:
        return f"{self.mean:.2%}" + (f" ± {self.std:.2%}" if len(self.accuracies) > 1 else "")

    def __str__(self) -> str:
        count = len(self.accuracies)
        budget = f"{count} network{'s' * (count > 1)}, {self.steps} steps"
        if augmentation := self.training.get("augmentation"):
            budget += f", augmented by {augmentation.get('strategy', augmentation['name'])}"
        if "labels" in self.training:
            budget += ", hard labels"
        lines = [f"distilled set   {self._summary}   ({budget})"]
        if self.baseline:
            lines.append(f"random real     {self.baseline._summary}   (same budget)")
        width = max(map(len, self.class_names))
        for c, name in enumerate(self.class_names):
            row = f"  {name:<{width}}  {self.per_class[:, c].mean():7.2%}"
            if self.baseline:
                row += f"   random {self.baseline.per_class[:, c].mean():7.2%}"
            lines.append(row)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything in it as plain values, `null` for NaN, and the mean's 95% interval.

        `from_json` is the way back.
        """

        def numbers(report: "Evaluation") -> dict[str, Any]:
            columns = zip(report.class_names, report.per_class.T, strict=True)
            interval = report.interval()
            return {
                "mean": report.mean,
                "std": report.std,
                "interval": None if math.isnan(interval[0]) else list(interval),
                "accuracies": report.accuracies.tolist(),
                "per_class": {
                    name: None if np.isnan(x).any() else x.tolist() for name, x in columns
                },
            }

        return {
            "steps": self.steps,
            "training": self.training,
            "tested_on": self.tested_on,
            **numbers(self),
            "baseline": numbers(self.baseline) if self.baseline else None,
        }

    @classmethod
    def from_json(cls, report: dict[str, Any]) -> "Evaluation":
        """What `to_json` gave, read again. Raises `ValueError` for anything else."""

        def numbers(part: dict[str, Any], baseline: "Evaluation | None") -> "Evaluation":
            columns = part["per_class"].values()
            known = [part["accuracies"], *(column for column in columns if column is not None)]
            if not part["accuracies"] or any(len(each) != len(known[0]) for each in known):
                raise ValueError("accuracies are not one a network, and one a network and class")
            if not all(type(x) is float and 0 <= x <= 1 for each in known for x in each):
                raise ValueError("accuracies are no fractions of one")
            empty = [math.nan] * len(known[0])
            per_class = [empty if column is None else column for column in columns]
            evaluation = cls(
                np.array(part["accuracies"], np.float64),
                np.array(per_class, np.float64).T,
                tuple(part["per_class"]),
                report["steps"],
                baseline,
                report["training"],
                report["tested_on"],
            )
            for name in ("mean", "std"):
                if not math.isclose(part[name], getattr(evaluation, name), abs_tol=1e-9):
                    raise ValueError(f"the {name} is not that of the accuracies")
            return evaluation

        try:
            if type(report["steps"]) is not int or report["steps"] < 1:
                raise ValueError("there are no steps")
            if not all(isinstance(report[name], dict) for name in ("training", "tested_on")):
                raise ValueError("training and tested_on are no objects")
            baseline = report["baseline"]
            return numbers(report, numbers(baseline, None) if baseline else None)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"This is no evaluation: {error!r}.") from error
