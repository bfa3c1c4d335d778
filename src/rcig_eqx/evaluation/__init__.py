"""Fresh networks trained on a distilled set, and what they say of it."""

from ._augment import Augment as Augment, paper_strategy as paper_strategy
from ._metrics import (
    METRICS as METRICS,
    accuracy as accuracy,
    balanced_accuracy as balanced_accuracy,
)
from ._report import Evaluation as Evaluation
from ._train_network import cross_entropy as cross_entropy, train_network as train_network

__all__ = [
    "METRICS",
    "Augment",
    "Evaluation",
    "cross_entropy",
    "train_network",
]
