"""Whole recipes to pass to `distill`: the library's, the paper's, and the authors' code's.

    distill(train, images_per_class=1, key=key, recipe=presets.paper())

Where the paper gives no number, the outer batch and the pool's learning rate, both of its recipes
have the code's. Both take any method in the place of `rcig_paper`: `rig`, `cig` and `vig`, its
ablations, or `rcig` and `frepo`, which are given what they have of these options; one made of
others, as `staged` is, has none of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ._checks import ArgumentError
from ._pool import PoolSchedule
from ._recipe import Recipe, coreset_optimizer, ema
from .methods import AbstractMethod, rcig_paper

__all__ = ["authors_code", "paper"]


def paper(method: Callable[..., AbstractMethod] = rcig_paper, **changed: Any) -> Recipe:
    """The paper's RCIG: one pool step a visit, the last iterate, the largest rates (appendix C).

    `changed` are fields of the method, such as `inner=Adam(steps=50)`. The paper raises λ with the
    network's depth: pass `l2_rate=5e-3` at depth 4 and 5e-2 at depth 5.
    """
    if not callable(method):
        raise ArgumentError(
            "method",
            f"is {method!r}: pass what makes one, such as methods.rig without brackets, and its "
            "options beside it.",
        )
    return Recipe(
        _with(method(**changed), changed, below_largest=1.0),
        optimizer=coreset_optimizer(0.003, 0.03),
        pool=PoolSchedule(30, 100, min_visit=1, max_visit=1, learning_rate=5e-5),
        average=ema(0.0),
        fold=False,
        batch_size=1024,
    )


def authors_code(method: Callable[..., AbstractMethod] = rcig_paper, **changed: Any) -> Recipe:
    """What the authors' released code does beyond, or unlike, the paper.

    Where the head is solved for, the implicit gradient clipped leaf by leaf and the label margin;
    1 to 15 pool steps a visit, and an average with decay 0.99. Of its habits these are left out:
    the inner Adam's bias correction counts the pool network's steps, the head's kernel stays in
    ∂L_o/∂θ and v, mirrored images are not counted in λ, learning rates are searched for otherwise
    ([`Implicit`][rcig_eqx.methods.Implicit] says how), the inner one also grows during a run and
    the inverse-Hessian one never changes, where here both shrink by the paper's rule, and RIG has
    the form that [`rig`][rcig_eqx.methods.rig] names.
    """
    given = paper(method, **changed)
    assert given.method is not None
    solved = given.method.head_l2_rate is not None
    return dataclasses.replace(
        given,
        method=_with(given.method, changed, clip=solved, margin=solved),
        pool=PoolSchedule(30, 100, min_visit=1, max_visit=15, learning_rate=5e-5),
        average=ema(0.99),
    )


def _with(method: AbstractMethod, changed: dict[str, Any], **options: Any) -> AbstractMethod:
    """The method with those of the options that it has and that were not changed."""
    taken = {k: v for k, v in options.items() if k in vars(method) and k not in changed}
    return dataclasses.replace(method, **taken) if taken else method
