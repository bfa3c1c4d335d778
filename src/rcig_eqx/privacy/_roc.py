"""How well a score tells members from others: the area under the ROC curve, and its low end."""

import dataclasses
import statistics

import numpy as np
from jaxtyping import Float, Float64


@dataclasses.dataclass(frozen=True)
class Auc:
    """An area under a ROC curve: 1/2 for guessing, 1 for a perfect attack.

    - `value`: the probability that a random member scores above a random other, ties as halves.
    - `error`: its standard error.
    """

    value: float
    error: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """A confidence interval: normal, cut off at 0 and 1.

        Of no width where every member scores above every other, which says little of few images.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}: choose it between 0 and 1, such as 0.95.")
        half = statistics.NormalDist().inv_cdf((1 + level) / 2) * self.error
        return max(0.0, self.value - half), min(1.0, self.value + half)

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {(self.interval()[1] - self.interval()[0]) / 2:.3f}"


def auc(members: Float[np.ndarray, " members"], others: Float[np.ndarray, " others"]) -> Auc:
    """The area under the ROC curve of two independent samples of scores, with DeLong's error.

    Each member's share of the others below it, and the reverse, are means whose variances add
    (DeLong, DeLong and Clarke-Pearson, 1988). NumPy alone. Raises `ValueError` for fewer than two
    scores of either, or NaN.
    """
    _check(members, others)
    above, below = _below(members, others), _below(others, members)
    error = (above.var(ddof=1) / len(members) + below.var(ddof=1) / len(others)) ** 0.5
    return Auc(float(above.mean()), float(error))


def _below(
    scores: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]
) -> Float64[np.ndarray, " n"]:
    """The share of `reference` below each score, ties as halves."""
    ordered = np.sort(reference)
    counts = [np.searchsorted(ordered, scores, side) for side in ("left", "right")]
    return (counts[0] + counts[1]) / (2 * len(ordered))


@dataclasses.dataclass(frozen=True)
class Roc:
    """A ROC curve: what each threshold on the score gives, from the strictest to the laxest.

    - `fpr`: `[thresholds]`, the share of others that are called members, rising from 0 to 1.
    - `tpr`: `[thresholds]`, the share of members that are.
    - `smallest_fpr`: the smallest rate above 0 that so many others can show.
    """

    fpr: Float64[np.ndarray, " thresholds"]
    tpr: Float64[np.ndarray, " thresholds"]
    smallest_fpr: float

    @property
    def area(self) -> float:
        """The area under the curve."""
        return float(np.trapezoid(self.tpr, self.fpr))

    def tpr_at(self, fpr: float) -> float:
        """The largest true-positive rate with at most this false-positive rate.

        NaN below `smallest_fpr`: no false positive among few others does not show so low a rate.
        """
        if not 0 < fpr <= 1:
            raise ValueError(f"fpr is {fpr}: choose a rate in (0, 1], such as 0.01.")
        if fpr < self.smallest_fpr:
            return float("nan")
        return float(self.tpr[np.searchsorted(self.fpr, fpr + 1e-12, "right") - 1])


def roc(members: Float[np.ndarray, " members"], others: Float[np.ndarray, " others"]) -> Roc:
    """The ROC curve of scores, a member's the higher.

    Raises `ValueError` as `auc` does.
    """
    _check(members, others)
    scores = np.concatenate([members, others])
    is_member = np.arange(len(scores)) < len(members)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are called together
    hits, alarms = np.cumsum(is_member[order])[last], np.cumsum(~is_member[order])[last]
    return Roc(
        np.append(0, alarms) / len(others), np.append(0, hits) / len(members), 1 / len(others)
    )


def _check(members: np.ndarray, others: np.ndarray) -> None:
    if min(len(members), len(others)) < 2:
        raise ValueError(
            f"There are {len(members)} scores of members and {len(others)} of others: pass at "
            "least two of each."
        )
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("Some scores are NaN: look at the network or attack they come from.")
