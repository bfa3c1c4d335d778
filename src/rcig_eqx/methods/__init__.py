"""Ready methods for `distill(method=…)`, and the functions they are made of."""

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
from ._staged import Staged as Staged, default_method as default_method, staged as staged

# So that help() lists them.
__all__ = [name for name in dir() if not name.startswith("_")]  # pyright: ignore[reportUnsupportedDunderAll]
