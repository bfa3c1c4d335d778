"""What a method is: a rule for the hypergradient of a distilled set at one network."""

import abc
import math
from collections.abc import Iterator
from typing import TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._checks import check_number
from .._coreset import Coreset
from .._hypergradient import Hypergradient
from .._losses import InnerLoss, OuterLoss as OuterLoss, SquaredError, label_margin, platt_loss
from .._types import PyTree
from ..models import AbstractNetwork
from ..solvers._definite import norm


class AbstractMethod(eqx.Module):
    """A strategy for `distill`: how to differentiate the outer loss through the inner problem."""

    @abc.abstractmethod
    def hypergradient(
        self,
        model: AbstractNetwork,
        coreset: Coreset,
        images: Float[Array, "b h w c"],
        targets: Float[Array, "b classes"],
        *,
        key: PRNGKeyArray,
    ) -> Hypergradient:
        """The hypergradient at one network and one outer batch; `targets` are one-hot.

        `key` is for what a method draws at random, such as the images of a partial backward pass.
        """


class AbstractAdaptiveMethod(AbstractMethod):
    """A method with numbers of its own, such as learning rates, that follow the run.

    The numbers are arrays of the method, which is a pytree: `State.recipe.method` has the present
    ones. Compile what takes such a method with `equinox.filter_jit`.
    """

    @abc.abstractmethod
    def tune(
        self,
        model: AbstractNetwork,
        coreset: Coreset,
        images: Float[Array, "b h w c"],
        targets: Float[Array, "b classes"],
    ) -> "AbstractAdaptiveMethod":
        """The method to begin with, fitted to one network and one outer batch."""

    @abc.abstractmethod
    def adapt(self, stats: dict[str, Array]) -> "AbstractAdaptiveMethod":
        """The method for the next step, after one with these statistics."""


def accuracy(predictions: Float[Array, "b classes"], targets: Float[Array, "b classes"]) -> Array:
    """The fraction of rows whose largest prediction is their target's."""
    return jnp.mean(jnp.argmax(predictions, -1) == jnp.argmax(targets, -1))


def subtract_margin(result: Hypergradient, coreset: Coreset) -> Hypergradient:
    """The same hypergradient with the label margin subtracted from the outer loss."""
    margin, gradient = jax.value_and_grad(label_margin)(coreset.labels)
    return Hypergradient(
        result.value - margin,
        eqx.tree_at(lambda c: c.labels, result.gradient, replace_fn=lambda g: g - gradient),
        result.stats,
    )


def clip_implicit(direct: PyTree, implicit: PyTree) -> PyTree:
    """The implicit gradient, each leaf scaled down to its direct gradient's norm if it is longer.

    In the authors' code, not in the paper.
    """

    def clip(d: Array, i: Array) -> Array:
        limit, length = norm(d), norm(i)
        return i * jnp.where(length > limit, limit / jnp.where(length > 0, length, 1), 1)

    return jax.tree.map(clip, direct, implicit)


def is_quadratic(inner_loss: InnerLoss) -> TypeGuard[SquaredError]:
    """Whether an inner loss has the closed form, by its type alone: a subclass may not."""
    return type(inner_loss) is SquaredError


def check_quadratic(inner_loss: InnerLoss, what: str) -> SquaredError:
    """The inner loss; `ValueError` if it lacks the closed form that a method is made of."""
    if not is_quadratic(inner_loss):
        name = getattr(inner_loss, "__name__", type(inner_loss).__name__)
        raise ValueError(
            f"inner_loss is {name}, but {what} in closed form, which a SquaredError has alone. "
            "For any other take the primal route with a trained head, "
            "methods.cig(inner_loss=...) or vig, or methods.default_method(steps, "
            "inner_loss=...), which chooses by the type of the loss."
        )
    return inner_loss


def with_parts(method: AbstractMethod) -> Iterator[AbstractMethod]:
    """A method, the methods that it is made of, and theirs."""
    yield method
    for part in vars(method).values():
        if isinstance(part, AbstractMethod):
            yield from with_parts(part)


def trains_head(method: AbstractMethod) -> bool:
    """Whether a method, its parts left out, trains the head instead of solving for it."""
    return not getattr(method, "reparameterized", True)


def is_linear_in_labels(method: AbstractMethod) -> bool:
    """Whether the inner minimum of a method, its parts left out, is linear in the labels."""
    own = getattr(method, "inner_loss", None)
    return (own is None or is_quadratic(own)) and getattr(method, "linearized", True)


def scales_predictions(method: AbstractMethod, coreset: Coreset, batch_size: int) -> bool:
    """Whether the outer loss of a method, its parts left out, multiplies predictions by exp(log τ).

    Labels can take the temperature of such a loss alone. It is tried out on one batch of numbers.
    """
    loss = getattr(method, "outer_loss", None)
    if loss is None:  # one made of others has theirs; of one's own method nobody knows
        return len(list(with_parts(method))) > 1
    if loss is platt_loss:
        return True
    shape, dtype = (batch_size, coreset.num_classes), coreset.labels.dtype
    f = jnp.sin(jnp.arange(math.prod(shape), dtype=dtype)).reshape(shape)
    t = jax.nn.one_hot(jnp.arange(batch_size) % shape[1], shape[1], dtype=dtype)
    s = jnp.asarray(0.5, coreset.log_temperature.dtype)
    return bool(jnp.allclose(loss(f, t, s), loss(f * jnp.exp(s), t, 0 * s), rtol=1e-4))


def over_support(inner_loss: SquaredError, coreset: Coreset) -> SquaredError:
    """The inner loss of all the images a set stands for: mirrored ones share their weights."""
    if inner_loss.weights is None:
        return inner_loss
    weights = inner_loss.spread(coreset.labels)
    return SquaredError(jnp.concatenate([weights, weights]) if coreset.flip else weights)


def check_l2_rate(l2_rate: float | Scalar) -> None:
    """Raise `ValueError` unless the ridge problem has one solution. Traced rates are let pass."""
    check_number("l2_rate", l2_rate, lambda rate: rate > 0, "positive, such as 5e-4")
