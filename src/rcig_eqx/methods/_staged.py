"""One method after another in the same run."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hypergradient import Hypergradient
from ._method import AbstractAdaptiveMethod, AbstractMethod


class staged(AbstractAdaptiveMethod):
    """`first` for so many steps, `then` for the rest: a cheap start for a costlier method.

    Both are compiled into one step, and the optimiser, the pool and the average go on as if
    nothing had happened. Statistics that one of the two does not have are zero in its steps, and
    `converged` is true.

    **Arguments:**

    - `first`, `then`: methods.
    - `steps`: for how many steps the first one is used.
    - `done`: steps that have been taken.
    """

    first: AbstractMethod
    then: AbstractMethod
    steps: int = eqx.field(static=True)
    done: Int[Array, ""] = eqx.field(default_factory=lambda: jnp.zeros((), jnp.int32))

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: the first method needs at least one.")

    def hypergradient(self, model, coreset, images, targets, *, key):
        problem = (model, coreset, images, targets)
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

    def tune(self, model, coreset, images, targets):
        def tuned(method: AbstractMethod) -> AbstractMethod:
            adaptive = isinstance(method, AbstractAdaptiveMethod)
            return method.tune(model, coreset, images, targets) if adaptive else method

        return staged(tuned(self.first), tuned(self.then), self.steps, self.done)

    def adapt(self, stats):
        def adapted(method: AbstractMethod, used: Array) -> AbstractMethod:
            if not isinstance(method, AbstractAdaptiveMethod):
                return method
            keep = lambda new, old: jnp.where(used, new, old) if eqx.is_array(old) else old  # noqa: E731
            return jax.tree.map(keep, method.adapt(stats), method)

        early = self.done < self.steps
        return staged(
            adapted(self.first, early), adapted(self.then, ~early), self.steps, self.done + 1
        )
