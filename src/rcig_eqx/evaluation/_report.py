"""Accuracies measured: as numbers, as text, and as JSON."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

CONFUSED_UP_TO = 2_000  # classes, whose matrix takes 32 MB


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Test accuracies of several networks trained on one distilled set, as fractions of one.

    - `accuracies`: `[networks]`.
    - `per_class`: `[networks classes]`; NaN for a class without test images.
    - `class_names`: one per class.
    - `steps`: training steps of each network.
    - `baseline`: the same for as many random real images, where they are known.
    - `training`: how the networks were trained, as `training_recipe`
      says it.
    - `tested_on`: the test set's name, its number of images, and the key, in plain values.
    - `sets`: `[networks]`, the number of the set that each network was trained on, where there are
      several: distilled sets pooled, or random draws. `None` for one set.
    - `losses`: `[networks]`, the mean training loss over the last tenth of the steps.
    - `converged`: `[networks]`, whether a network had learned its training set: the final loss is
      at most 5% of the first, or the loss no longer fell and 95% of the images get the class that
      their label ranks first. Without that, accuracies say more about the training than about the
      set. `losses` and `converged` are `None` in a file of an earlier version.
    - `metrics`: `[networks]` each, by name: what `evaluate(metrics=…)` asked for. NaN where a
      network diverged and the metric has no number for that.
    - `confusion`: how many test images of each class, the row, got each class as the answer, summed
      over the networks; what a diverged network says counts nowhere. `None` of over 2,000 classes
      and in a file of an earlier version.
    """

    accuracies: Float64[np.ndarray, " networks"]
    per_class: Float64[np.ndarray, "networks classes"]
    class_names: tuple[str, ...]
    steps: int
    baseline: "Evaluation | None" = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    tested_on: dict[str, Any] = dataclasses.field(default_factory=dict)
    sets: Int64[np.ndarray, " networks"] | None = None
    losses: Float64[np.ndarray, " networks"] | None = None
    converged: Bool[np.ndarray, " networks"] | None = None
    metrics: dict[str, Float64[np.ndarray, " networks"]] = dataclasses.field(default_factory=dict)
    confusion: Int64[np.ndarray, "classes classes"] | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy over the networks."""
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation over the networks; 0 for one network."""
        return deviation(self.accuracies)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean accuracy, by Student's t.

        Over the means of the sets where there are several: networks trained on one set are not
        independent. Over the networks of a single set, it leaves out how sets differ from seed to
        seed; pool several with [`cross_evaluate`][rcig_eqx.cross_evaluate]. NaN for one network.
        """
        from scipy.special import stdtrit  # slow to import, and needed here alone

        means = self._set_means()
        n = len(means)
        if n < 2:
            return math.nan, math.nan
        reach = float(stdtrit(n - 1, (1 + level) / 2)) * float(means.std(ddof=1)) / math.sqrt(n)
        middle = float(means.mean())
        return middle - reach, middle + reach

    def _set_means(self) -> Float64[np.ndarray, " n"]:
        """The mean accuracy of each set, or the accuracies of the networks of a single one."""
        numbers = [] if self.sets is None else np.unique(self.sets)
        if len(numbers) < 2:
            return self.accuracies
        return np.array([self.accuracies[self.sets == number].mean() for number in numbers])

    @property
    def _summary(self) -> str:
        return summary(self.accuracies)

    def __repr__(self) -> str:
        beside = f", random real {self.baseline._summary}" if self.baseline else ""
        return f"Evaluation({self._summary} over {len(self.accuracies)} networks{beside})"

    def _repr_html_(self) -> str:
        rows = {"distilled set": self, "random real": self.baseline}
        cells = "".join(
            f"<tr><td>{name}</td><td>{report._summary}</td><td>{len(report.accuracies)}</td></tr>"
            for name, report in rows.items()
            if report
        )
        head = "<tr><th>trained on</th><th>test accuracy</th><th>networks</th></tr>"
        said = "".join(f"<p>{remark}</p>" for remark in self.remarks)
        return f"<table>{head}{cells}</table>{said}"

    def __str__(self) -> str:
        count = len(self.accuracies)
        budget = f"{count} network{'s' * (count > 1)}, {self.steps} steps"
        if (mirrored := self.training.get("mirrored")) is not None:
            budget += ", mirrored" if mirrored else ", not mirrored: flip=False"
        if augmentation := self.training.get("augmentation"):
            budget += f", augmented by {augmentation.get('strategy', augmentation['name'])}"
        if "labels" in self.training:
            budget += ", hard labels"
        lines = [f"distilled set   {self._summary}   ({budget})"]
        if self.baseline:
            draws = 1 if self.baseline.sets is None else len(np.unique(self.baseline.sets))
            drawn = f"{draws} random draw{'s' * (draws > 1)}"
            lines.append(f"random real     {self.baseline._summary}   (same budget, {drawn})")
        width = max(map(len, self.class_names))
        for c, name in enumerate(self.class_names):
            row = f"  {name:<{width}}  {self.per_class[:, c].mean():7.2%}"
            if self.baseline:
                row += f"   random {self.baseline.per_class[:, c].mean():7.2%}"
            lines.append(row)
        for name, values in self.metrics.items():
            row = f"{name}  {values.mean():.4g}"
            if self.baseline and name in self.baseline.metrics:
                row += f"   random {self.baseline.metrics[name].mean():.4g}"
            lines.append(row)
        if count > 1:
            lines.append(f"± is the standard deviation over {count} networks.")
        if self.losses is not None:
            beside = self.baseline and self.baseline.losses
            more = "" if beside is None else f", on random images {np.mean(beside):.3g}"
            lines.append(f"Final training loss {self.losses.mean():.3g}{more}.")
        return "\n".join([*lines, *self.remarks])

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the accuracies must know: networks that had not converged, with what to
        pass to `evaluate` then, and a distilled set that does worse than random images."""
        said = []
        parts = {"the distilled set": self} | (
            {"random images": self.baseline} if self.baseline else {}
        )
        early = {name: part.unconverged for name, part in parts.items()}
        if any(early.values()):
            where = " and ".join(
                f"{early[name]} of {len(part.accuracies)} networks on {name}"
                for name, part in parts.items()
                if early[name]
            )
            rate = self.training.get("learning_rate", {}).get("peak", 1.0)
            faster = f" or learning_rate={10 * rate:g}" if rate < 1e-3 else ""
            said.append(
                f"After {self.steps:,} steps {where} had not converged: these accuracies are too "
                f"low to compare. Pass steps={5 * self.steps}{faster}."
            )
        if self.baseline and self.mean < self.baseline.mean:
            said.append(
                "The distilled set does worse than random images. "
                + (
                    "Learned labels are larger than those of real images and take more steps to "
                    "fit: compare again once the networks converge."
                    if early["the distilled set"]
                    else "Distill for more steps, or evaluate with the network, the loss and the "
                    "labels that it was distilled for."
                )
            )
        return tuple(said)

    def plot_confusion(self, *, title: str = "") -> Any:
        """A matplotlib figure of `confusion`: the share of each class that got each answer.

        Needs matplotlib, the extra `plot`. `ValueError` where there is no `confusion`.
        """
        from ..io._figures import confusion_figure  # which `io` imports this module for

        if self.confusion is None:
            raise ValueError("This evaluation has no confusion matrix: evaluate the set anew.")
        return confusion_figure(self.confusion, self.class_names, title=title)

    @property
    def unconverged(self) -> int:
        """How many networks had not converged; 0 where that is not known. Those that diverged are
        not counted."""
        if self.converged is None or self.losses is None:
            return 0
        return int((~self.converged & np.isfinite(self.losses)).sum())

    @property
    def diverged(self) -> int:
        """How many networks diverged in training; 0 where that is not known."""
        return 0 if self.losses is None else int((~np.isfinite(self.losses)).sum())

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
                "sets": None if report.sets is None else report.sets.tolist(),
                "losses": None if report.losses is None else list(map(_finite, report.losses)),
                "converged": None if report.converged is None else report.converged.tolist(),
                "per_class": {
                    name: None if np.isnan(x).any() else x.tolist() for name, x in columns
                },
                "metrics": {
                    name: list(map(_finite, values)) for name, values in report.metrics.items()
                },
                "confusion": report._counts(),
            }

        return {
            "steps": self.steps,
            "training": self.training,
            "tested_on": self.tested_on,
            **numbers(self),
            "baseline": numbers(self.baseline) if self.baseline else None,
        }

    def _counts(self) -> dict[str, dict[str, int]] | None:
        """The confusion by names: of each class, the answers that it got."""
        if self.confusion is None:
            return None
        names = self.class_names
        return {
            name: {names[said]: int(row[said]) for said in np.flatnonzero(row)}
            for name, row in zip(names, self.confusion, strict=True)
        }

    @classmethod
    def from_json(cls, report: dict[str, Any]) -> "Evaluation":
        """What `to_json` gave, read again. Raises `ValueError` for anything else."""

        def numbers(part: dict[str, Any], baseline: "Evaluation | None") -> "Evaluation":
            columns = part["per_class"].values()
            known = [part["accuracies"], *(column for column in columns if column is not None)]
            if not part["accuracies"] or any(len(each) != len(known[0]) for each in known):
                raise ValueError(
                    "there is not one accuracy per network, and one per network and class"
                )
            if not all(type(x) is float and 0 <= x <= 1 for each in known for x in each):
                raise ValueError("accuracies are no fractions of one")
            sets, losses, converged = (
                _read_column(part, name, len(known[0]), *kind) for name, kind in _COLUMNS.items()
            )
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
                sets,
                losses,
                converged,
                _read_metrics(part, len(known[0])),
                _read_confusion(part.get("confusion"), tuple(part["per_class"])),
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


def deviation(accuracies: Float64[np.ndarray, " networks"]) -> float:
    """Sample standard deviation over the networks; 0 for one network."""
    return float(accuracies.std(ddof=1)) if len(accuracies) > 1 else 0.0


def summary(accuracies: Float64[np.ndarray, " networks"]) -> str:
    """Mean ± standard deviation over the networks."""
    spread = f" ± {deviation(accuracies):.2%}" if len(accuracies) > 1 else ""
    return f"{accuracies.mean():.2%}{spread}"


_COLUMNS: dict[str, tuple[type, Any]] = {
    "sets": (int, np.int64),
    "losses": (float, np.float64),
    "converged": (bool, np.bool_),
}


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _read_column(part: dict[str, Any], name: str, count: int, kind: type, dtype: Any) -> Any:
    """One value per network, or `None` where an earlier version has not written it."""
    values = part.get(name)
    if values is None:
        return None
    if kind is float:
        values = [math.nan if value is None else value for value in values]
    if len(values) != count or any(type(value) is not kind for value in values):
        raise ValueError(f"{name} are not one per network")
    return np.array(values, dtype)


def _read_metrics(part: dict[str, Any], count: int) -> dict[str, Any]:
    """A value per network of each metric; none where an earlier version has not written them."""
    measured = part.get("metrics", {})
    columns = {name: _read_column(measured, name, count, *_COLUMNS["losses"]) for name in measured}
    if any(column is None for column in columns.values()):
        raise ValueError("metrics are not one per network")
    return columns


def _read_confusion(
    counts: dict[str, dict[str, int]] | None, names: tuple[str, ...]
) -> Int64[np.ndarray, "classes classes"] | None:
    """The matrix of counts by names; `None` where an earlier version has not written them."""
    if counts is None:
        return None
    if len(names) > CONFUSED_UP_TO:
        raise ValueError("confusion is of too many classes")
    confusion, place = np.zeros((len(names),) * 2, np.int64), {n: i for i, n in enumerate(names)}
    if counts.keys() != place.keys():
        raise ValueError("confusion is not of the classes")
    for name, answers in counts.items():
        for said, count in answers.items():
            if type(count) is not int or count < 0:
                raise ValueError("confusion has no counts")
            confusion[place[name], place[said]] = count
    return confusion
