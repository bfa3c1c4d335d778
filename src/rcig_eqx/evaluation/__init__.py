"""Fresh networks trained on a distilled set, and what they say of it."""

from .._augment import Augment as Augment, paper_strategy as paper_strategy
from ._full import evaluate_full as evaluate_full
from ._judge import judge as judge
from ._judgement import Judgement as Judgement
from ._metrics import (
    METRICS as METRICS,
    accuracy as accuracy,
    balanced_accuracy as balanced_accuracy,
)
from ._report import Evaluation as Evaluation
from ._scores import (
    ars as ars,
    hlr as hlr,
    ior as ior,
    lrs as lrs,
    relative_accuracy as relative_accuracy,
    rr as rr,
)
from ._train_network import cross_entropy as cross_entropy, train_network as train_network

__all__ = [
    "METRICS",
    "Augment",
    "Evaluation",
    "Judgement",
    "ars",
    "cross_entropy",
    "evaluate_full",
    "hlr",
    "ior",
    "judge",
    "lrs",
    "relative_accuracy",
    "rr",
    "train_network",
]
