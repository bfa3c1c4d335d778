"""Ready methods for `distill(method=…)`, and the functions they are made of."""

from ._frepo import frepo as frepo, head_hypergradient as head_hypergradient
from ._method import (
    AbstractMethod as AbstractMethod,
    Hypergradient as Hypergradient,
    OuterLoss as OuterLoss,
)
from ._rcig import (
    choose_dual_solver as choose_dual_solver,
    exact_hypergradient as exact_hypergradient,
    rcig as rcig,
)
