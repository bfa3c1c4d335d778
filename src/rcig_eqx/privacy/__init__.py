"""Membership inference: whether a trained network tells which images it was trained on."""

from ._attacks import (
    AbstractAttack as AbstractAttack,
    Observations as Observations,
    Threshold as Threshold,
    TrainedAttack as TrainedAttack,
    all_attacks as all_attacks,
    logistic_regression as logistic_regression,
    mlp as mlp,
    nearest_neighbors as nearest_neighbors,
    random_forest as random_forest,
)
from ._lira import (
    LiraReport as LiraReport,
    Shadows as Shadows,
    likelihood_ratio as likelihood_ratio,
    lira as lira,
    train_shadows as train_shadows,
)
from ._membership import chunks as chunks, membership_inference as membership_inference
from ._report import (
    PrivacyCurve as PrivacyCurve,
    PrivacyReport as PrivacyReport,
    join as join,
    save_curves as save_curves,
    save_roc as save_roc,
)
from ._roc import Auc as Auc, Roc as Roc, auc as auc, roc as roc
from ._train import (
    Preprocessed as Preprocessed,
    confidence as confidence,
    distill_then_train as distill_then_train,
    train_on as train_on,
    train_with_snapshots as train_with_snapshots,
)

__all__ = [
    "AbstractAttack",
    "distill_then_train",
    "lira",
    "membership_inference",
    "save_curves",
    "save_roc",
    "train_on",
    "train_shadows",
]
