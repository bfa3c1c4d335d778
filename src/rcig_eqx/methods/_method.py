"""What a method is: a rule for the hypergradient of a distilled set at one network."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from .._checks import check_flags, check_number
from .._coreset import Coreset
from .._losses import (
    InnerLoss,
    OuterLoss,
    SquaredError,
    is_quadratic,
    label_margin,
    scales_predictions,
)
from .._subsample import check_subset, choose
from .._trees import norm
from .._types import PyTree
from ..bilevel import Hypergradient
from ..models import AbstractNetwork

History = Mapping[str, Sequence[float]]  # a statistic's number in each step, by name


P = ParamSpec("P")
M = TypeVar("M")


def fields_of(make: Callable[P, M]) -> Callable[[Callable[..., M]], Callable[P, M]]:
    """Types a function that makes a method: its arguments are the method's fields."""
    del make
    return lambda function: function


class AbstractMethod(eqx.Module):
    """A strategy for `distill`: how to differentiate the outer loss through the inner problem.

    `hypergradient` is all that a method must have. The rest tells whoever runs it what only the
    method knows; its defaults fit a method without λ, whose inner problem nobody knows. One with an
    L2 term, an inner and an outer loss may subclass
    [`AbstractRegularizedMethod`][rcig_eqx.methods.AbstractRegularizedMethod], which knows them.
    """

    @abc.abstractmethod
    def hypergradient(
        self,
        model: AbstractNetwork,
        coreset: Coreset,
        inputs: Float[Array, "b *shape"],
        targets: Float[Array, "b classes"],
        /,
        *,
        key: PRNGKeyArray,
    ) -> Hypergradient:
        """The hypergradient at one network and one outer batch; `targets` are one-hot.

        `key` is for what a method draws at random, such as the inputs of a partial backward pass.
        """

    def check(self, coreset: Coreset, batch_size: int) -> None:
        """Raise `ValueError` for what does not fit a distilled set and an outer batch."""

    def with_raised_l2(self, factor: Scalar) -> "AbstractMethod":
        """The method with λ times so much, after a step that was not finite."""
        del factor
        return self

    @property
    def head_l2_rate(self) -> float | Scalar | None:
        """λ for each distilled point of the ridge system for the head; `None` if none is solved."""
        return None

    @property
    def folds(self) -> bool:
        """Whether labels times τ, and τ = 1, change no prediction at the inner minimum.

        That minimum is linear in the labels then, and the outer loss multiplies predictions by τ.
        """
        return False

    def advice(self, history: History) -> str:
        """What to change in a run in which a solve failed or fell short, in sentences."""
        del history
        return ""

    def warnings(self, history: History) -> list[str]:
        """What else to warn of at the end of a run."""
        del history
        return []

    @property
    def turn(self) -> "tuple[int, AbstractMethod] | None":
        """In how many steps a step will cost otherwise, and this method as it is then.

        `None` where all steps to come cost the same. It tells how long a run will take.
        """
        return None

    @property
    def adapts(self) -> bool:
        """Whether the method has numbers of its own that follow the run.

        They are arrays of the method, which is a pytree: `State.recipe.method` has the present
        ones. Compile what takes such a method with `equinox.filter_jit`.
        """
        return False

    def tune(
        self,
        model: AbstractNetwork,
        coreset: Coreset,
        inputs: Float[Array, "b *shape"],
        targets: Float[Array, "b classes"],
        /,
    ) -> "AbstractMethod":
        """The method to begin with, fitted to one network and one outer batch, if it `adapts`."""
        del model, coreset, inputs, targets
        return self

    def adapt(self, stats: dict[str, Array]) -> "AbstractMethod":
        """The method for the next step, after one with these statistics, if it `adapts`."""
        del stats
        return self


class AbstractRegularizedMethod(AbstractMethod):
    """A method whose inner problem is ℓ(f(X_S), y_S) + λ/2 ‖θ‖², n distilled inputs counted.

    - `l2_rate`: λ/n.
    - `inner_loss`, `outer_loss`: ℓ, and the loss on the outer batch.
    - `subset`: distilled inputs, mirrored ones counted, that a step's last backward pass goes
      through, drawn anew each time; all if `None` or if there are no more. The gradient in the
      inputs is then an unbiased estimate, that in labels and log τ what it was.
    - `margin`: subtract the label margin from the outer loss, as the authors' code does.
    """

    l2_rate: eqx.AbstractVar[float | Scalar]
    inner_loss: eqx.AbstractVar[InnerLoss]
    outer_loss: eqx.AbstractVar[OuterLoss]
    subset: eqx.AbstractVar[int | None]
    margin: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def through(
        self,
        model: AbstractNetwork,
        coreset: Coreset,
        inputs: Float[Array, "b *shape"],
        targets: Float[Array, "b classes"],
        /,
        chosen: Int[Array, " m"] | None = None,
    ) -> Hypergradient:
        """The hypergradient without the margin, its last backward pass through `chosen` inputs.

        `chosen` are indices, mirrored ones counted; all inputs if `None`.
        """

    def hypergradient(self, model, coreset, inputs, targets, /, *, key):
        chosen = choose(len(coreset.support()[1]), self.subset, key)
        result = self.through(model, coreset, inputs, targets, chosen)
        return subtract_margin(result, coreset) if self.margin else result

    @property
    @abc.abstractmethod
    def linear_in_labels(self) -> bool:
        """Whether the inner minimum is linear in the labels."""

    @property
    def folds(self) -> bool:
        return self.linear_in_labels and scales_predictions(self.outer_loss)

    def with_raised_l2(self, factor: Scalar) -> "AbstractMethod":
        return eqx.tree_at(lambda method: method.l2_rate, self, self.l2_rate * factor)

    def check(self, coreset: Coreset, batch_size: int) -> None:
        """Raise `ValueError` for losses that do not make one number each."""
        b = jax.ShapeDtypeStruct((batch_size, coreset.num_classes), coreset.labels.dtype)
        n = jax.ShapeDtypeStruct(coreset.labels.shape, coreset.labels.dtype)
        outer = "(predictions [b classes], targets [b classes], log_temperature)"
        inner = "(predictions [n classes], labels [n classes])"
        check_loss("outer_loss", self.outer_loss, (b, b, coreset.log_temperature), outer)
        check_loss("inner_loss", self.inner_loss, (n, n), inner)


def check_loss(name: str, loss: Callable[..., Any], arguments: tuple[Any, ...], takes: str) -> None:
    """Raise `ValueError` unless a loss makes one number of such arguments."""
    wanted = f"pass a function {takes}"
    try:
        value = eqx.filter_eval_shape(loss, *arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be called ({error}): {wanted}.") from error
    if (shape := getattr(value, "shape", None)) != ():
        what = type(value).__name__ if shape is None else f"an array {shape}"
        raise ValueError(f"{name} returned {what}, not one number: {wanted} that does.")


def accuracy(predictions: Float[Array, "b classes"], targets: Float[Array, "b classes"]) -> Array:
    """The fraction of rows whose largest prediction is their target's."""
    return jnp.mean(jnp.argmax(predictions, -1) == jnp.argmax(targets, -1))


def support_vjp(
    coreset: Coreset,
) -> tuple[tuple[Array, Array], Callable[[Array, Array, Array], Coreset]]:
    """The inputs and labels to train on, and what takes their cotangents back to the set.

    The latter has the cotangent of log τ for its third argument.
    """
    support, transpose = jax.vjp(lambda c: c.support(), coreset)

    def pull_back(inputs: Array, labels: Array, log_temperature: Array) -> Coreset:
        (gradient,) = transpose((inputs, labels))
        return eqx.tree_at(lambda c: c.log_temperature, gradient, log_temperature)

    return support, pull_back


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


def over_support(inner_loss: InnerLoss, coreset: Coreset) -> InnerLoss:
    """The inner loss of all the inputs a set stands for: mirrored ones share their weights."""
    if not is_quadratic(inner_loss) or inner_loss.weights is None:
        return inner_loss
    weights = inner_loss.spread(coreset.labels)
    return SquaredError(jnp.concatenate([weights, weights]) if coreset.flip else weights)


def weights_of(inner_loss: InnerLoss, coreset: Coreset) -> Float[Array, "n classes"] | None:
    """The weights of a `SquaredError` over all the inputs, mirrored ones counted."""
    loss = over_support(inner_loss, coreset)
    return loss.weights if is_quadratic(loss) else None


def first_short(history: History) -> dict[str, float]:
    """The statistics of the first step in which a solve failed or fell short."""
    at = list(history["converged"]).index(0)
    return {name: values[at] for name, values in history.items() if len(values) > at}


def check_shared(method: AbstractRegularizedMethod) -> None:
    """Raise `ValueError` for an invalid L2 rate, subset or margin."""
    rate = method.l2_rate
    check_number("l2_rate", rate, lambda rate: rate > 0, "positive, such as 5e-4")
    check_subset(method.subset)
    check_flags(margin=method.margin)
