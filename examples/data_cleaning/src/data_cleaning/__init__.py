"""Example weights learned by hypergradient, which find the wrong labels of a training set."""

from .cleaning import Cleaned as Cleaned, clean as clean, fit as fit, tune as tune
from .labels import auc as auc, corrupt as corrupt, precision as precision
from .problem import (
    Examples as Examples,
    Weighting as Weighting,
    accuracy as accuracy,
    equal_weights as equal_weights,
    examples as examples,
    inner_loss as inner_loss,
    outer_loss as outer_loss,
)
