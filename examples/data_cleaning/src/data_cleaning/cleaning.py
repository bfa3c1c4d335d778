"""The weights learned: the classifier follows ψ, and ψ goes down the hypergradient."""

from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Scalar
from rich.progress import track

from rcig_eqx import hypergradient
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.solvers import ConjugateGradient

from .problem import (
    Classifier,
    Examples,
    Weighting,
    blank_classifier,
    equal_weights,
    inner_loss,
    outer_loss,
)

SOLVER = ConjugateGradient(rtol=1e-2, max_steps=50)


class Cleaned(eqx.Module):
    """The weights learned, the classifier that goes with them, and the outer losses on the way."""

    psi: Weighting
    classifier: Classifier
    losses: tuple[float, ...]


def fit(start: Classifier, psi: Weighting, train: Examples, *, steps: int = 200) -> Classifier:
    """The minimum of the inner loss by L-BFGS, from a classifier near it or not."""

    def loss(theta: Classifier) -> Scalar:
        return inner_loss(theta, psi, train, train)

    optimizer: Any = optax.lbfgs()
    value_and_grad: Any = optax.value_and_grad_from_state(loss)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        theta, state = carry
        value, gradient = value_and_grad(theta, state=state)
        updates, state = optimizer.update(
            gradient, state, theta, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(theta, updates), state), None

    (theta, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return theta


def clean(
    train: Examples,
    validation: Examples,
    num_classes: int,
    *,
    l2: float = 0.1,
    steps: int = 30,
    progress: bool = True,
) -> Cleaned:
    """Learn the examples' weights, at a given L2 weight.

    A strong one keeps the classifier from learning wrong labels by heart, and the weights from
    fitting the validation images.
    """
    psi = equal_weights(train, l2)
    return _descend(psi, _of_examples, train, validation, num_classes, steps, "cleaning", progress)


def tune(
    train: Examples,
    validation: Examples,
    num_classes: int,
    *,
    l2: float = 0.1,
    steps: int = 15,
    progress: bool = True,
) -> Cleaned:
    """Learn the L2 weight, all examples counting alike."""
    psi = equal_weights(train, l2)
    return _descend(psi, _of_all, train, validation, num_classes, steps, "tuning", progress)


def _of_examples(part: Array) -> bool:
    return part.ndim == 1


def _of_all(part: Array) -> bool:
    return part.ndim == 0


def _descend(
    psi: Weighting,
    learned: Callable[[Array], bool],
    train: Examples,
    validation: Examples,
    num_classes: int,
    steps: int,
    name: str,
    progress: bool,
) -> Cleaned:
    """Adam in the learned part of ψ.

    The classifier, the adjoint and ψ each go on from the last step's: the first is twenty L-BFGS
    steps from the minimum, the second a few conjugate gradients.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: take at least one.")
    optimizer = optax.adam(optax.cosine_decay_schedule(0.3, steps))

    @eqx.filter_jit
    def step(
        theta: Classifier, psi: Weighting, state: Any, adjoint: Classifier
    ) -> tuple[Classifier, Weighting, Any, Hypergradient]:
        theta = fit(theta, psi, train, steps=20)
        at = hypergradient(
            outer_loss,
            inner_loss,
            theta,
            psi,
            train,
            validation,
            solver=SOLVER,
            warm_start=adjoint,
            filter_spec=learned,
        )
        updates, state = cast(tuple[Any, Any], optimizer.update(at.gradient, state))
        return theta, cast(Weighting, eqx.apply_updates(psi, updates)), state, at

    fit_whole = eqx.filter_jit(fit)
    blank = blank_classifier(train, num_classes)
    theta, adjoint = fit_whole(blank, psi, train), blank
    state: Any = optimizer.init(cast(Any, eqx.filter(psi, learned)))
    losses: list[float] = []
    for _ in track(range(steps), name, disable=not progress):
        theta, psi, state, at = step(theta, psi, state, adjoint)
        adjoint = at.adjoint
        losses.append(float(at.value))
    return Cleaned(psi, fit_whole(theta, psi, train), tuple(losses))
