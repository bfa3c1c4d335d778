"""Ready methods for `distill(method=…)`, and the functions they are made of."""

from ._frepo import frepo as frepo, head_hypergradient as head_hypergradient
from ._implicit import implicit_hypergradient as implicit_hypergradient
from ._inner import InnerProblem as InnerProblem
from ._method import (
    AbstractAdaptiveMethod as AbstractAdaptiveMethod,
    AbstractMethod as AbstractMethod,
    OuterLoss as OuterLoss,
    clip_implicit as clip_implicit,
)
from ._paper import (
    RateRule as RateRule,
    cig as cig,
    implicit as implicit,
    rcig_paper as rcig_paper,
    rig as rig,
    vig as vig,
)
from ._random import random_subset as random_subset
from ._rcig import (
    choose_dual_solver as choose_dual_solver,
    exact_hypergradient as exact_hypergradient,
    rcig as rcig,
)
from ._registry import METHODS as METHODS
from ._staged import default_method as default_method, staged as staged

# So that help() lists them.
__all__ = [name for name in dir() if not name.startswith("_")]  # pyright: ignore[reportUnsupportedDunderAll]
