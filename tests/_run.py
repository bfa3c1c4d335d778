"""`distill` with all its options side by side, as tables of cases have them."""

import dataclasses
from typing import Any

import rcig_eqx
from rcig_eqx import Checkpoints, DistillResult, Recipe

_STRATEGIES = ("optimizer", "pool", "average", "parameterization", "fold", "flip")
_KEPT = {"checkpoint_dir": "folder", "checkpoint_every": "every", "keep_checkpoints": "keep"}


def distill(train: Any, **given: Any) -> DistillResult:
    """`given` has arguments of `distill`, fields of a `Recipe`, and `Checkpoints` as above."""
    strategies = {name: given.pop(name) for name in _STRATEGIES if name in given}
    kept = {_KEPT.get(name, name): given.pop(name) for name in [*_KEPT, "resume"] if name in given}
    strategies = {name: value for name, value in strategies.items() if value is not None}
    recipe = dataclasses.replace(given.pop("recipe", None) or Recipe(), **strategies)
    checkpoints = Checkpoints(**kept) if "folder" in kept else None
    return rcig_eqx.distill(train, recipe=recipe, checkpoint_dir=checkpoints, **given)
