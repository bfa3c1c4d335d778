"""Wrong labels: how to make them, and how well weights tell them from right ones."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from rcig_eqx.data import Dataset


def corrupt(
    data: Dataset, fraction: float, rng: np.random.Generator
) -> tuple[Dataset, Bool[np.ndarray, " n"]]:
    """The set with a fraction of its labels changed to another class, and which ones they are."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}: choose it between 0 and 1.")
    wrong = np.zeros(len(data), bool)
    wrong[rng.choice(len(data), round(fraction * len(data)), replace=False)] = True
    shift = wrong * rng.integers(1, data.num_classes, len(data))
    labels = (data.labels.astype(np.int64) + shift) % data.num_classes
    return dataclasses.replace(data, labels=labels), wrong


def auc(weights: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"]) -> float:
    """The chance that a random wrong example has a lower weight than a random right one."""
    above = weights[~wrong][:, None] - weights[wrong][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def precision(weights: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"]) -> float:
    """The share of wrong examples among the lightest, of which as many are taken as are wrong."""
    lightest = np.argsort(weights, kind="stable")[: int(wrong.sum())]
    return float(wrong[lightest].mean())
