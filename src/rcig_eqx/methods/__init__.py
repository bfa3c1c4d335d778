"""Ready methods for `distill(method=…)`, and the functions they are made of."""

from .._linearize import linearize as linearize
from .._ridge import ridge_head as ridge_head
from ._frepo import Frepo as Frepo, frepo as frepo
from ._implicit import (
    Implicit as Implicit,
    cig as cig,
    rcig_paper as rcig_paper,
    rig as rig,
    vig as vig,
)
from ._method import (
    AbstractMethod as AbstractMethod,
    AbstractRegularizedMethod as AbstractRegularizedMethod,
    clip_implicit as clip_implicit,
)
from ._random import RandomSubset as RandomSubset, random_subset as random_subset
from ._rcig import (
    Rcig as Rcig,
    choose_dual_solver as choose_dual_solver,
    rcig as rcig,
)
from ._registry import METHODS as METHODS
from ._staged import Staged as Staged, default_method as default_method, staged as staged

__all__ = [
    "METHODS",
    "AbstractMethod",
    "AbstractRegularizedMethod",
    "Frepo",
    "Implicit",
    "Rcig",
    "Staged",
    "cig",
    "default_method",
    "frepo",
    "linearize",
    "random_subset",
    "rcig",
    "rcig_paper",
    "ridge_head",
    "rig",
    "staged",
    "vig",
]
