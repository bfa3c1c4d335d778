"""Methods by name."""

from .._losses import platt_loss
from .._registry import Registry
from ._frepo import frepo
from ._implicit import cig, rcig_paper, rig, vig
from ._method import AbstractMethod
from ._random import random_subset
from ._rcig import rcig


def frepo_platt(**options) -> AbstractMethod:
    """[`frepo`][rcig_eqx.methods.frepo] with the paper's outer loss in place of its own."""
    return frepo(outer_loss=platt_loss, **options)


METHODS: Registry[AbstractMethod] = Registry(
    "methods",
    rcig=rcig,
    rcig_paper=rcig_paper,
    frepo=frepo,
    frepo_platt=frepo_platt,
    rig=rig,
    cig=cig,
    vig=vig,
    random=random_subset,
)
"""Methods by name."""
