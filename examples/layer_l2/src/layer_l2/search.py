"""Two ways to find the weights: down the hypergradient, and over a grid."""

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Scalar
from rich.progress import track

from rcig_eqx import hypergradient
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.solvers import ConjugateGradient, Dual

from .problem import Examples, fit, inner_loss, validation_loss

SOLVER = Dual(ConjugateGradient(rtol=1e-5, max_steps=500))


class Found(eqx.Module):
    """The best weights met, their validation loss, and the linear solves spent."""

    log_l2: Float[Array, " layers"]
    loss: Float[Array, ""]
    solves: int
    losses: tuple[float, ...]


@eqx.filter_jit
def loss_and_gradient(
    log_l2: Float[Array, " layers"],
    train: Examples,
    validation: Examples,
    solver: Dual = SOLVER,
) -> Hypergradient:
    """The validation loss at θ(λ), and its gradient in log λ."""
    theta = fit(log_l2, train)
    return hypergradient(
        validation_loss, inner_loss, theta, log_l2, train, validation, solver=solver
    )


def descend(
    start: Float[Array, " layers"],
    train: Examples,
    validation: Examples,
    *,
    steps: int = 20,
    learning_rate: float = 0.5,
    progress: bool = True,
) -> Found:
    """Adam on log λ. Each step is one fit and one solve for the hypergradient."""
    if steps < 1:
        raise ValueError(f"steps is {steps}: take at least one.")
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    log_l2, state = start, optimizer.init(start)
    met: list[tuple[Array, Scalar]] = []
    for _ in track(range(steps), "hypergradient", disable=not progress):
        at = loss_and_gradient(log_l2, train, validation)
        met.append((log_l2, at.value))
        updates, state = optimizer.update(at.gradient, state)
        log_l2 = jnp.asarray(optax.apply_updates(log_l2, updates))
    return _best(met, 2 * steps)


def grid(
    points: Sequence[Float[Array, " layers"]],
    train: Examples,
    validation: Examples,
    *,
    progress: bool = True,
) -> Found:
    """Every point tried. One fit each."""
    if not points:
        raise ValueError("points is empty: a grid needs at least one.")

    @eqx.filter_jit
    def loss(log_l2: Float[Array, " layers"], train: Examples, validation: Examples) -> Scalar:
        return validation_loss(fit(log_l2, train), log_l2, train, validation)

    met = [
        (point, loss(point, train, validation))
        for point in track(points, f"grid of {len(points)}", disable=not progress)
    ]
    return _best(met, len(points))


def cube(values: Sequence[float], layers: int) -> list[Float[Array, " layers"]]:
    """All combinations of some values of log λ, one a layer."""
    return [jnp.asarray(point) for point in itertools.product(values, repeat=layers)]


def _best(met: Sequence[tuple[Array, Scalar]], solves: int) -> Found:
    losses = tuple(float(loss) for _, loss in met)
    log_l2, loss = met[losses.index(min(losses))]
    return Found(log_l2, loss, solves, losses)
