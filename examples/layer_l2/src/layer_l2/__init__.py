"""One L2 weight a layer of a linearized network, by hypergradient and by grid search."""

from .problem import (
    Examples as Examples,
    examples as examples,
    fit as fit,
    inner_loss as inner_loss,
    validation_loss as validation_loss,
)
from .search import Found as Found, descend as descend, grid as grid
