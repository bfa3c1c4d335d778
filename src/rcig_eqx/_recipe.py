"""The strategies of a run as one value, and those that are of no other file."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ._augment import Augmentation, check_kind
from ._checks import ArgumentError, check_counts, check_number
from ._coreset import Coreset
from ._pool import PoolSchedule
from ._types import PyTree
from .methods import AbstractMethod
from .models import MakeModel
from .parameterizations import AbstractParameterization, plain

Average = Callable[[Array], Array]
"""A function from the number of iterates averaged so far to the weight of the next."""
Rate = float | optax.Schedule


@runtime_checkable
class Optimizer(Protocol):
    """What optax calls a gradient transformation: a value with `init` and `update`."""

    @property
    def init(self) -> Callable[..., PyTree]: ...

    @property
    def update(self) -> Callable[..., tuple[PyTree, PyTree]]: ...


class FallingRate(eqx.Module):
    """peak · √(hold / step), and `peak` before."""

    peak: float
    hold: int

    def __call__(self, step: Array) -> Array:
        return self.peak * jnp.sqrt(self.hold / jnp.maximum(step + 1, self.hold))


def falling_rate(peak: float = 0.03, hold: int = 500) -> FallingRate:
    """A learning rate that falls with the square root of the steps, after `hold` steps at `peak`.

    peak · √(hold / step): it needs no length of the run, as
    [`growing_average`][rcig_eqx.growing_average] needs none. Large at first, where it is the step
    size that limits a distilled set, and small later, where it is the gradient's noise. The paper's
    rate does not change during a run.
    """
    check_number("peak", peak, lambda rate: rate > 0, "positive")
    check_counts(hold=hold)
    return FallingRate(float(peak), int(hold))


def _rate_of(psi: PyTree) -> PyTree:
    """The rate of every leaf of ψ: that of the temperature for an attribute `log_temperature`."""
    of_temperature = jax.tree_util.GetAttrKey("log_temperature")

    def rate(path: tuple, _: Any) -> str:
        return "temperature" if path[-1:] == (of_temperature,) else "data"

    return jax.tree_util.tree_map_with_path(rate, psi)


class CoresetOptimizer(eqx.Module):
    """AdaBelief, with a rate for the data and one for log τ."""

    learning_rate: Rate
    temperature_learning_rate: Rate

    def _transformation(self) -> optax.GradientTransformation:
        rates = {"data": self.learning_rate, "temperature": self.temperature_learning_rate}
        optimizers: dict[Any, Any] = {name: optax.adabelief(rate) for name, rate in rates.items()}
        return optax.partition(optimizers, _rate_of)

    def init(self, params: PyTree) -> PyTree:
        """The optimizer's state for a ψ."""
        return self._transformation().init(params)

    def update(
        self, updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        """What to add to ψ, and the next state."""
        return self._transformation().update(updates, state, params)


def coreset_optimizer(
    learning_rate: float | Scalar | optax.Schedule | None = None,
    temperature_learning_rate: float | Scalar | optax.Schedule = 0.03,
) -> CoresetOptimizer:
    """AdaBelief, with one rate for images and labels and one for log τ (paper, appendix C).

    The paper's rates are 0.003 and 0.03. If `None`, the first one is
    [`falling_rate()`][rcig_eqx.falling_rate]: it starts tenfold, which goes further in short runs.
    Either may be an optax schedule. A parameterization's ψ takes the first throughout, but for an
    attribute `log_temperature` of a module in it.
    """
    data = falling_rate() if learning_rate is None else learning_rate
    rates = [r if callable(r) else float(r) for r in (data, temperature_learning_rate)]
    for name, rate in zip(("learning_rate", "temperature_learning_rate"), rates, strict=True):
        if not callable(rate):
            check_number(name, rate, lambda r: r > 0, "positive")
    return CoresetOptimizer(*rates)  # pyright: ignore[reportArgumentType]


def updated(
    optimizer: Optimizer, gradient: PyTree, opt_state: PyTree, psi: PyTree, value: Scalar
) -> tuple[PyTree, PyTree]:
    """ψ after an optimizer's updates, and its next state.

    One that takes more than a gradient, such as `optax.contrib.reduce_on_plateau`, gets `value`,
    the outer loss on the step's batch, and `grad`. It does not get `value_fn`: the step knows the
    loss at ψ alone.
    """
    extended: Any = optax.with_extra_args_support(optimizer)  # pyright: ignore[reportArgumentType]
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic needs it
        updates, opt_state = extended.update(gradient, opt_state, psi, value=value, grad=gradient)
    return eqx.apply_updates(psi, updates), opt_state


def check_optimizer(optimizer: Optimizer, psi: PyTree) -> None:
    """Raise `ValueError` for an optimizer that a step cannot use: a dry run without numbers."""
    value = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        opt_state = eqx.filter_eval_shape(optimizer.init, psi)
        eqx.filter_eval_shape(updated, optimizer, psi, opt_state, psi, value)
    except Exception as error:
        raise ArgumentError(
            "optimizer",
            f"fails on the distilled set ({error}): pass one that needs no more than gradients, "
            "value= and grad=, such as optax.adabelief(0.01).",
        ) from error


class Ema(eqx.Module):
    """(1 − decay) / (1 − decayᵏ) for the k-th iterate."""

    decay: float

    def __call__(self, count: Array) -> Array:
        return (1 - self.decay) / (1 - self.decay ** (count + 1.0))


def ema(decay: float) -> Ema:
    """Weights of an exponential moving average with bias correction (0.99 in the authors' code).

    Returns a function from the number of iterates averaged so far to the weight of the next.
    """
    check_number("decay", decay, lambda d: 0 <= d < 1, "in [0, 1)")
    return Ema(decay)


class GrowingAverage(eqx.Module):
    """(sharpness + 1) / (k + sharpness) for the k-th iterate."""

    sharpness: float

    def __call__(self, count: Array) -> Array:
        return (self.sharpness + 1.0) / (count + self.sharpness + 1.0)


def growing_average(sharpness: float = 9.0) -> GrowingAverage:
    """Weights of an average whose window grows with the run: about the last 1/(sharpness+1).

    Polynomial-decay averaging (Shamir and Zhang, 2013): forgets the start however long the run,
    where a fixed decay lags badly in a short one.
    """
    check_number("sharpness", sharpness, lambda s: s >= 0, "a number of at least 0")
    return GrowingAverage(sharpness)


Inputs = Float[Array, "n *shape"]


class Recipe(eqx.Module):
    """The strategies of a run. Only an adaptive method has arrays, its learning rates.

    - `method`: how the hypergradient is computed. `None`: `methods.default_method(steps)`, FRePo
      with `platt_loss` for the first `min(1000, steps // 2)` steps, then RCIG.
    - `model`: a function from a key to a network. `None`: the paper's `ConvNet` of
      width 128 for images, an `MLP` for rows [n d].
    - `optimizer`: of the distilled set, any of optax.
    - `pool`: how the pool's networks are trained and replaced.
    - `average`: weights of the averaged ψ: a function from the number of iterates averaged so far
      to the weight of the next, such as [`ema(0.99)`][rcig_eqx.ema].
    - `parameterization`: what is optimized in place of images and labels, an
      [`AbstractParameterization`][rcig_eqx.parameterizations.AbstractParameterization].
    - `fold`: whether the labels returned are multiplied by the learned temperature, as
      `fold_temperature`: networks train to a higher accuracy on them.
      `None`: where it changes no prediction at the inner minimum. That is so if the outer loss
      multiplies predictions by τ, as `platt_loss` says of itself, the inner loss is a
      `SquaredError`, and the network is linearized or its body frozen. A loss of your own says so
      as an [`AbstractOuterLoss`][rcig_eqx.AbstractOuterLoss], a method of your own by `folds`.
    - `flip`: whether the set also stands for its mirror images. `None`: for RGB sets of up to 1,000
      images (paper, appendix C), or as a `Coreset` to start from says.
    - `batch_size`: inputs of an outer batch. `None`: 64 for every 16 distilled images, at least 64
      and at most 1,024.
    - `augment`: how the outer batch and the distilled set change at random at every step: `True`, a
      strategy such as `"flip_crop"`, an [`Augment`][rcig_eqx.evaluation.Augment] or a function
      `(images, *, key) -> images`, as `evaluate` takes. Both are changed with the same key, mirror
      images of the set mirrored afterwards. The hypergradient is that of the set as it was before;
      the networks of the pool train on that set, too.
    - `balanced`: whether an outer batch has as many inputs of each class. `None`: where the largest
      class has more than three times as many as the smallest.

    `distill` fills in what is `None`; [`init`][rcig_eqx.init] needs a method and a model.
    """

    method: AbstractMethod | None = None
    model: MakeModel | None = None
    optimizer: Optimizer = coreset_optimizer()
    pool: PoolSchedule = PoolSchedule()
    average: Average = growing_average()
    parameterization: AbstractParameterization = plain()
    fold: bool | None = None
    flip: bool | None = None
    batch_size: int | None = None
    augment: bool | str | Augmentation | None = None
    balanced: bool | None = None

    def __check_init__(self) -> None:
        for name, value, right, such_as in (
            ("method", self.method, AbstractMethod | None, "methods.rcig()"),
            ("optimizer", self.optimizer, Optimizer, "coreset_optimizer(0.01)"),
            ("pool", self.pool, PoolSchedule, "PoolSchedule(size=30)"),
            ("parameterization", self.parameterization, AbstractParameterization, "plain()"),
            ("fold", self.fold, bool | np.bool_ | None, "True, False or None"),
            ("flip", self.flip, bool | np.bool_ | None, "True, False or None"),
            ("balanced", self.balanced, bool | np.bool_ | None, "True, False or None"),
        ):
            if not isinstance(value, right):
                raise ArgumentError(name, f"is {value!r}: pass a value such as {such_as}.")
        if self.batch_size is not None:
            check_counts(batch_size=self.batch_size)
        check_kind(self.augment)
        try:
            weight = jax.eval_shape(self.average, jax.ShapeDtypeStruct((), jnp.int32))
        except TypeError:
            weight = None
        if getattr(weight, "shape", None) != ():
            name = getattr(self.average, "__name__", self.average)
            raise ArgumentError(
                "average",
                f"is {name}: pass a function from the iterates so far to the weight of the next, "
                "such as ema(0.99).",
            )

    def chosen(self) -> tuple[AbstractMethod, MakeModel]:
        """The method and the model. `ValueError` if either is left to `distill`."""
        if self.method is None or self.model is None:
            raise ValueError("recipe lacks a method or a model: pass Recipe(method, model, ...).")
        return self.method, self.model

    def augmented(self, inputs: Inputs, key: PRNGKeyArray) -> Inputs:
        """Inputs as a step sees them. `init` has made a function of `augment`."""
        return self.augment(inputs, key=key) if callable(self.augment) else inputs

    def shown(self, psi: PyTree, key: PRNGKeyArray) -> Coreset:
        """The set that ψ stands for, as a step sees it."""
        coreset = self.parameterization.decode(psi)
        return eqx.tree_at(lambda c: c.images, coreset, self.augmented(coreset.images, key))


def default_batch_size(distilled: int) -> int:
    """The outer batch for so many distilled images, mirrored ones not counted.

    A step passes through the distilled set many times and through the batch a few: a larger one
    costs little beside it, and takes most of the gradient's noise away. Measured for 100 distilled
    images, head-only (`docs/results.md`); the slope and the ends are by arithmetic.
    """
    return 64 * min(max(distilled // 16, 1), 16)
