"""One method after another in the same run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Scalar

from .._checks import check_counts
from .._losses import SQUARED_ERROR, InnerLoss, OuterLoss, is_quadratic, platt_loss
from ..bilevel import Hypergradient
from ..solvers import Adam, ConjugateGradient
from ._frepo import frepo
from ._implicit import cig
from ._method import AbstractMethod, History
from ._rcig import rcig


class Staged(AbstractMethod):
    """`first` for so many steps, `then` for the rest: a cheap start for a costlier method.

    Both are compiled into one step, and the optimizer, the pool and the average go on as if
    nothing had happened. Statistics that one of the two does not have are zero in its steps, and
    `converged` is true.

    - `first`, `then`: methods.
    - `steps`: for how many steps the first one is used. As `done`, the steps taken, it is an
      array of the method: another number compiles nothing anew.
    """

    first: AbstractMethod
    then: AbstractMethod
    steps: Int[Array, ""]
    done: Int[Array, ""]

    def hypergradient(self, model, coreset, inputs, targets, /, *, key):
        problem = (model, coreset, inputs, targets)
        methods = (self.first, self.then)
        shapes = [eqx.filter_eval_shape(m.hypergradient, *problem, key=key).stats for m in methods]
        idle = {
            name: jnp.ones(x.shape, x.dtype) if name == "converged" else jnp.zeros(x.shape, x.dtype)
            for stats in shapes
            for name, x in stats.items()
        }

        def use(method: AbstractMethod) -> Hypergradient:
            result = method.hypergradient(*problem, key=key)
            return Hypergradient(result.value, result.gradient, idle | result.stats)

        return jax.lax.cond(self.done < self.steps, lambda: use(self.first), lambda: use(self.then))

    def check(self, coreset, batch_size):
        self.first.check(coreset, batch_size)
        self.then.check(coreset, batch_size)

    def with_raised_l2(self, factor):
        raised = self.first.with_raised_l2(factor), self.then.with_raised_l2(factor)
        return self._replaced(*raised, self.done)

    @property
    def head_l2_rate(self) -> float | Scalar | None:
        """The smaller of the two."""
        rates = [m.head_l2_rate for m in (self.first, self.then)]
        known = [jnp.asarray(rate) for rate in rates if rate is not None]
        return jnp.min(jnp.stack(known)) if known else None

    @property
    def folds(self) -> bool:
        return self.first.folds and self.then.folds

    def advice(self, history: History) -> str:
        said = (self.first.advice(history), self.then.advice(history))
        return " ".join(text for text in dict.fromkeys(said) if text)

    def warnings(self, history: History) -> list[str]:
        return list(dict.fromkeys(self.first.warnings(history) + self.then.warnings(history)))

    @property
    def turn(self) -> tuple[int, AbstractMethod] | None:
        left = int(self.steps - self.done)
        return (left, self._replaced(self.first, self.then, self.steps)) if left > 0 else None

    @property
    def adapts(self) -> bool:
        return True

    def tune(self, model, coreset, inputs, targets, /):
        problem = (model, coreset, inputs, targets)
        return self._replaced(self.first.tune(*problem), self.then.tune(*problem), self.done)

    def adapt(self, stats):
        early = self.done < self.steps

        def adapted(method: AbstractMethod, used: Array) -> AbstractMethod:
            def keep(new: Any, old: Any) -> Any:
                return jnp.where(used, new, old) if eqx.is_array(old) else old

            return jax.tree.map(keep, method.adapt(stats), method) if method.adapts else method

        first, then = adapted(self.first, early), adapted(self.then, ~early)
        return self._replaced(first, then, self.done + 1)

    def _replaced(self, *values: Any) -> "Staged":
        return eqx.tree_at(lambda m: (m.first, m.then, m.done), self, values)


def staged(first: AbstractMethod, then: AbstractMethod, steps: int) -> Staged:
    """A [`Staged`][rcig_eqx.methods.Staged] that begins with `first`, for `steps` steps.

    Raises `ValueError` for what is no method, or fewer steps than one.
    """
    check_counts(steps=steps)
    for name, method in (("first", first), ("then", then)):
        if not isinstance(method, AbstractMethod):
            raise ValueError(f"{name} is {method!r}: pass a method, such as methods.rcig().")
    return Staged(first, then, jnp.asarray(steps, jnp.int32), jnp.zeros((), jnp.int32))


def default_method(
    steps: int,
    *,
    outer_loss: OuterLoss = platt_loss,
    inner_loss: InnerLoss = SQUARED_ERROR,
    l2_rate: float = 5e-4,
    subset: int | None = None,
    dtype: DTypeLike | None = None,
) -> AbstractMethod:
    """What `distill` does in a run of so many steps: head-only first, then the exact method.

    The head-only gradient gets most of the way in a fraction of the time; the exact one goes
    further (`docs/results.md`). Half of the steps each, but no more than 1,000 head-only.

    Both need the closed form that a [`SquaredError`][rcig_eqx.SquaredError] has. With an inner
    loss of any other type it is [`cig`][rcig_eqx.methods.cig] instead: the head trained, 100 Adam
    steps, and conjugate gradients with the Hessian where they end.

    `l2_rate` and `subset` are those of either method, `dtype` the precision of the ridge head's
    system, where there is one.
    """
    shared: dict[str, Any] = {"l2_rate": l2_rate, "subset": subset}
    shared |= {"inner_loss": inner_loss, "outer_loss": outer_loss}
    if not is_quadratic(inner_loss):
        solver = ConjugateGradient(rtol=1e-2, max_steps=200)
        return cig(**shared, inner=Adam(steps=100), solver=solver)
    return staged(frepo(**shared, dtype=dtype), rcig(**shared), min(1000, max(1, steps // 2)))
