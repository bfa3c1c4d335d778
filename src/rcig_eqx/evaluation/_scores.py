"""Scores of a distilled set, from accuracies that are fractions of one."""

import math
from collections.abc import Sequence
from typing import Any

from .._checks import ArgumentError, check_number


def hlr(full: float, hard: float) -> float:
    """Hard-label recovery of DD-Ranking: what is lost to all of the data under hard labels.

    `full - hard`: the accuracies of networks trained on all of the data, and on the distilled set
    with hard labels. Smaller is better. `ValueError` for what is no fraction of one.
    """
    _check_fractions(full=full, hard=hard)
    return full - hard


def ior(distilled: float, random: float) -> float:
    """Improvement over random of DD-Ranking: what is gained over as many random real images.

    `distilled - random`: the accuracies of networks trained on either by the same protocol.
    `ValueError` for what is no fraction of one.
    """
    _check_fractions(distilled=distilled, random=random)
    return distilled - random


def lrs(full: float, hard: float, distilled: float, random: float, *, weight: float = 0.5) -> float:
    """Label-robust score of DD-Ranking, in [0, 1]; larger is better.

    `(e^α - e^-1) / (e - e^-1)` with `α = w · ior(distilled, random) - (1 - w) · hlr(full, hard)`
    and `w = weight`. `ValueError` for what is no fraction of one.
    """
    _check_fractions(weight=weight)
    return _normalized(weight * ior(distilled, random) - (1 - weight) * hlr(full, hard))


def ars(
    distilled: float,
    random: float,
    augmented_distilled: float,
    augmented_random: float,
    *,
    weight: float = 0.5,
) -> float:
    """Augmentation-robust score of DD-Ranking, in [0, 1]; larger is better.

    `(e^β - e^-1) / (e - e^-1)`, where `β` is `γ` times the improvement over random images with
    augmentation, plus `1 - γ` times that without, and `γ = weight`. `ValueError` for what is no
    fraction of one.
    """
    _check_fractions(weight=weight)
    with_, without = ior(augmented_distilled, augmented_random), ior(distilled, random)
    return _normalized(weight * with_ + (1 - weight) * without)


def rr(clean: float, attacked: Sequence[float]) -> float:
    """Robustness ratio of BEARD: `1 - (clean - mean(attacked)) / (clean - min(attacked))`.

    - `clean`: the accuracy on images that are not attacked.
    - `attacked`: the accuracies on the same images under several attacks.

    1 where no attack lowers the accuracy, 0 where all lower it alike. `ValueError` for what is no
    fraction of one, and without an attack.
    """
    if not attacked:
        raise ArgumentError("attacked", "is empty: pass one accuracy per attack.")
    _check_fractions(clean=clean)
    for accuracy in attacked:
        _check_fractions(attacked=accuracy)
    worst = min(attacked)
    if worst >= clean:
        return 1.0
    return 1 - (clean - math.fsum(attacked) / len(attacked)) / (clean - worst)


def relative_accuracy(distilled: float, full: float) -> float:
    """The accuracy of networks trained on a distilled set over that of networks trained on all.

    `ValueError` for what is no fraction of one, and for a `full` of 0.
    """
    _check_fractions(distilled=distilled, full=full)
    check_number("full", full, lambda x: x > 0, "positive")
    return distilled / full


def _normalized(difference: float) -> float:
    """[-1, 1] to [0, 1], as DD-Ranking has it."""
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))


def _check_fractions(**accuracies: Any) -> None:
    for name, value in accuracies.items():
        check_number(name, value, lambda x: 0 <= x <= 1, "a fraction of one, such as 0.861")
