"""One iteration of Algorithm 1: its state, and the pure function that advances it."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray, Scalar

from ._backend import compiler_options
from ._coreset import (
    AbstractParameterization,
    Coreset,
    check_parameterization,
    growing_average,
)
from ._devices import replicate
from ._faults import all_finite, diagnose, next_raises, raise_l2
from ._pool import (
    MakeModel,
    Member,
    PoolSchedule,
    average_networks,
    draw,
    each_network,
    get_member,
    new_pool,
    set_member,
    visit,
)
from ._types import PyTree, named
from .bilevel import Hypergradient
from .methods import AbstractMethod
from .models import AbstractNetwork, with_statistics


@functools.cache
def falling_rate(peak: float = 0.03, hold: int = 500) -> optax.Schedule:
    """A learning rate that falls with the square root of the steps, after `hold` steps at `peak`.

    peak · √(hold / step): it needs no length of the run, as
    [`growing_average`][rcig_eqx.growing_average] needs none. Large at first, where it is the step
    size that limits a distilled set, and small later, where it is the gradient's noise. The paper's
    rate does not change during a run.
    """
    if peak <= 0 or hold < 1:
        raise ValueError(f"peak is {peak}, hold {hold}: choose a positive rate and a step or more.")
    rate = lambda step: peak * jnp.sqrt(hold / jnp.maximum(step + 1, hold))  # noqa: E731
    return named(f"falling_rate({peak:g}, {hold:g})", rate)


def coreset_optimizer(
    learning_rate: float | Scalar | optax.Schedule | None = None,
    temperature_learning_rate: float | Scalar | optax.Schedule = 0.03,
) -> optax.GradientTransformation:
    """AdaBelief, with one rate for images and labels and one for log τ (paper, appendix C).

    The paper's rates are 0.003 and 0.03. If `None`, the first one is
    [`falling_rate()`][rcig_eqx.falling_rate]: it starts tenfold, which goes further in short runs.
    Either may be an optax schedule. A parameterisation's ψ that is no `Coreset` takes the first
    throughout.
    """
    data = falling_rate() if learning_rate is None else learning_rate
    rates = [r if callable(r) else float(r) for r in (data, temperature_learning_rate)]
    for rate in rates:
        if not callable(rate) and not rate > 0:
            raise ValueError(f"A learning rate of {rate} learns nothing: make it positive.")
    return _coreset_optimizer(*rates)


@functools.cache  # the same strategy object twice is compiled once
def _coreset_optimizer(
    data: float | optax.Schedule, temperature: float | optax.Schedule
) -> optax.GradientTransformation:
    where = lambda c: (c.images, c.labels, c.log_temperature)  # noqa: E731
    optimizer = optax.partition(
        {"data": optax.adabelief(data), "temperature": optax.adabelief(temperature)},
        lambda psi: (
            eqx.tree_at(where, psi, ("data", "data", "temperature"))
            if isinstance(psi, Coreset)
            else jax.tree.map(lambda _: "data", psi)
        ),
    )

    def name(rate: float | optax.Schedule) -> str:
        return getattr(rate, "__name__", type(rate).__name__) if callable(rate) else f"{rate:g}"

    named(f"coreset_optimizer({name(data)}, {name(temperature)})", optimizer.update)
    return optimizer


def update(
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    opt_state: PyTree,
    psi: PyTree,
    value: Scalar,
) -> tuple[PyTree, PyTree]:
    """An optimiser's updates of ψ and its next state.

    One that takes more than a gradient, such as `optax.contrib.reduce_on_plateau`, gets `value`,
    the outer loss on the step's batch, and `grad`. It does not get `value_fn`: the step knows the
    loss at ψ alone.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic needs it
        return optimizer.update(gradient, opt_state, psi, value=value, grad=gradient)


def check_optimizer(optimizer: optax.GradientTransformation, psi: PyTree) -> None:
    """Raise `ValueError` for an optimiser that a step cannot use: a dry run without numbers."""
    value = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        opt_state = eqx.filter_eval_shape(optimizer.init, psi)
        eqx.filter_eval_shape(update, optimizer, psi, opt_state, psi, value)
    except Exception as error:
        raise ValueError(
            f"optimizer fails on the distilled set ({error}): pass one that needs no more than "
            "gradients, value= and grad=, such as optax.adabelief(0.01)."
        ) from error


class Recipe(eqx.Module):
    """The strategies of a run. Only an adaptive method has arrays, its learning rates.

    - `method`: how the hypergradient is computed.
    - `make_model`: a function from a key to a network.
    - `optimizer`: of the distilled set; its updates are shaped like the `Coreset`.
    - `schedule`: of the pool.
    - `average`: weights of the averaged ψ, such as [`ema`][rcig_eqx.ema].
    - `parameterization`: what ψ is; `None` where it is the images and labels themselves.
    """

    method: AbstractMethod
    make_model: MakeModel
    optimizer: optax.GradientTransformation = coreset_optimizer()
    schedule: PoolSchedule = PoolSchedule()
    average: Callable[[Array], Array] = eqx.field(default_factory=growing_average)
    parameterization: AbstractParameterization | None = None

    def encode(self, coreset: Coreset) -> PyTree:
        """ψ to start from."""
        return coreset if self.parameterization is None else self.parameterization.encode(coreset)

    def decode(self, psi: PyTree) -> Coreset:
        """The set that ψ stands for."""
        return psi if self.parameterization is None else self.parameterization.decode(psi)

    def decode_vjp(self, psi: PyTree) -> tuple[Coreset, Callable[[Coreset], PyTree]]:
        """The set that ψ stands for, and what takes a gradient in the set to one in ψ."""
        if self.parameterization is None:
            return psi, lambda gradient: gradient
        coreset, transpose = jax.vjp(self.parameterization.decode, psi)
        return coreset, lambda gradient: transpose(gradient)[0]


class State(eqx.Module):
    """Everything that changes: one pytree.

    - `coreset`: ψ, a `Coreset`, or what the recipe's parameterisation has in its place.
    - `average`: the averaged ψ. Not an average of decoded sets, so that what a run returns is a
      set that ψ's few numbers stand for.
    - `opt_state`: the optimiser's.
    - `pool`: the partly trained networks, stacked.
    - `key`: the source of this run's randomness; every step derives its own from it.
    - `step`: iterations done.
    - `raises`: how many times λ is raised at present, after steps that were rejected.
    - `recipe`: the strategies, with the rates that an adaptive method has come to.
    """

    coreset: PyTree
    average: PyTree
    opt_state: PyTree
    pool: Member
    key: PRNGKeyArray
    step: Int[Array, ""]
    raises: Int[Array, ""]
    recipe: Recipe


def init(coreset: Coreset, recipe: Recipe, *, key: PRNGKeyArray) -> State:
    """The state before the first step: a pool of fresh networks around a starting ψ."""
    pool_key, run_key = jr.split(key)
    coreset = eqx.tree_at(lambda c: c.preprocess, coreset, None, is_leaf=lambda x: x is None)
    dtype = coreset.labels.dtype
    coreset = jax.tree.map(lambda x: x if eqx.is_array(x) else jnp.asarray(x, dtype), coreset)
    if recipe.parameterization is not None:
        check_parameterization(recipe.parameterization, coreset)
    psi = recipe.encode(coreset)
    check_optimizer(recipe.optimizer, psi)

    def copy(tree: PyTree) -> PyTree:  # what the caller has stays the caller's
        return jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, tree)

    return State(
        copy(psi),
        copy(psi),
        copy(recipe.optimizer.init(psi)),  # pyright: ignore[reportArgumentType]
        new_pool(recipe.make_model, recipe.schedule, key=pool_key),
        run_key,
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        copy(recipe),
    )


def tune(state: State, batch: tuple[Float[Array, "b h w c"], Integer[Array, " b"]]) -> State:
    """The state with its adaptive method's learning rates found (paper, appendix C).

    On the (first) network and the batch that the next `step` would take; other methods are left
    alone. Pure and jittable (`equinox.filter_jit`). `distill` does this before its first step.
    """
    method = state.recipe.method
    if not method.adapts:
        return state
    _, member, _, images, targets = _draw(state, batch)
    if state.recipe.schedule.networks_per_step > 1:
        member = get_member(member, jnp.zeros((), jnp.int32))
    coreset = state.recipe.decode(state.coreset)
    tuned = method.tune(on_set(member.model, coreset), coreset, images, targets)
    return replicate(eqx.tree_at(lambda s: s.recipe.method, state, tuned))


def tuned_structure(state: State, batch: Any) -> State:
    """The state with an adaptive method's arrays, or their shapes, as a run has them once tuned."""
    if not state.recipe.method.adapts:
        return state
    tuned = eqx.filter_eval_shape(tune, state, batch).recipe.method
    return eqx.tree_at(lambda s: s.recipe.method, state, tuned)


def _draw(state: State, batch: tuple[Array, Array]):
    """What a step works on: network(s) of the pool with their index, two keys, the outer batch."""
    images, labels = batch
    index_key, *keys = jr.split(jr.fold_in(state.key, state.step), 3)
    index = draw(state.recipe.schedule, key=index_key)
    classes = state.recipe.decode(state.coreset).num_classes
    targets = jax.nn.one_hot(labels, classes, dtype=images.dtype)
    return index, get_member(state.pool, index), keys, images, targets


def on_set(model: AbstractNetwork, coreset: Coreset) -> AbstractNetwork:
    """The network with the statistics that it has on the distilled set as it is now.

    What it has stored is of an earlier set, and of a fresh network of none.
    """
    return with_statistics(model, coreset.support()[0])


def step(
    state: State, batch: tuple[Float[Array, "b h w c"], Integer[Array, " b"]]
) -> tuple[State, dict[str, Array]]:
    """One iteration of Algorithm 1. Pure and jittable (`equinox.filter_jit`).

    Draws a network from the pool, moves ψ along the method's hypergradient on the outer batch,
    averages it, then trains that network on the new ψ. A network that normalises by batches is
    differentiated at its statistics on ψ, held fixed, and trained with those of each training
    step. A step whose hypergradient or update is
    not finite is rejected: ψ and its optimiser stay, the network that gave it is replaced, and
    the method's λ is ten times larger in the next step, up to 10⁴ times; every accepted step takes
    one such raise back. Of several networks a step (`PoolSchedule.networks_per_step`) the
    hypergradients are averaged, and one that is not finite is left out and its network replaced.

    **Arguments:** the state, and a batch of preprocessed images and integer labels.

    **Returns:** the next state, and metrics: `loss`, `gradient_norm` (of the images), `network`
    (its place in the pool), `rejected`, and the method's own, such as `accuracy`, `iterations` and
    `residual`. Where a network's hypergradient was not finite, or the update was not, also the
    `cause` and the `condition` number of the ridge head there; both are zero else.
    """
    recipe = state.recipe
    index, member, (key, visit_key), images, targets = _draw(state, batch)
    decoded, pull_back = recipe.decode_vjp(state.coreset)
    method = raise_l2(recipe.method, state.raises, decoded.labels.dtype)

    def at(member: Member, key: PRNGKeyArray) -> tuple[Hypergradient, Bool[Array, ""]]:
        model = on_set(member.model, decoded)
        result = method.hypergradient(model, decoded, images, targets, key=key)
        return result, all_finite((result.value, result.gradient))

    each, sound = each_network(at, member, recipe.schedule, key=key)
    several = recipe.schedule.networks_per_step > 1
    result = average_networks(each, sound) if several else each
    gradient = pull_back(result.gradient)
    if recipe.method.adapts:
        adapted = recipe.method.adapt(result.stats)
        recipe = eqx.tree_at(lambda r: r.method, recipe, adapted)
    updates, opt_state = update(
        recipe.optimizer, gradient, state.opt_state, state.coreset, result.value
    )
    coreset = eqx.apply_updates(state.coreset, updates)
    finite = jnp.any(sound) & all_finite((gradient, coreset))
    # An optimiser may hold infinities of its own; what overflows now would stall it for ever.
    kept = jax.tree.map(
        lambda new, old: jnp.isfinite(new) | ~jnp.isfinite(old),
        *(eqx.filter(tree, eqx.is_inexact_array) for tree in (opt_state, state.opt_state)),
    )
    finite = finite & jnp.all(jnp.stack([jnp.asarray(True), *map(jnp.all, jax.tree.leaves(kept))]))
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    coreset = jax.tree.map(keep, coreset, state.coreset)
    opt_state = jax.tree.map(keep, opt_state, state.opt_state)

    def explained() -> tuple[Int[Array, ""], Scalar]:
        one = get_member((member, each), worst) if several else (member, each)
        model = on_set(one[0].model, decoded)
        cause, condition = diagnose(method, model, decoded, images, one[1])
        return cause, condition.astype(result.value.dtype)

    worst = jnp.argmin(sound)  # the first network to give no finite hypergradient, if one did
    cause, condition = jax.lax.cond(
        finite & jnp.all(sound),
        lambda: (jnp.zeros((), jnp.int32), jnp.zeros_like(result.value)),
        explained,
    )
    weight = recipe.average(state.step)
    average = jax.tree.map(lambda a, x: a + weight * (x - a), state.average, coreset)

    # A network that gave no finite hypergradient is due for replacement.
    age = jnp.where(sound & finite, member.age, recipe.schedule.max_steps)
    member = Member(member.model, member.opt_state, age)
    X_S, y_S = recipe.decode(coreset).support()

    def train(member: Member, key: PRNGKeyArray) -> Member:
        return visit(member, X_S, y_S, recipe.make_model, recipe.schedule, key=key)

    member = each_network(train, member, recipe.schedule, key=visit_key)
    metrics = {
        "loss": result.value,
        "network": index[worst] if several else index,
        "rejected": ~finite,
        "cause": cause,
        "condition": condition,
        "gradient_norm": jnp.linalg.norm(result.gradient.images.ravel()),
        **result.stats,
    }
    done, raises = state.step + 1, next_raises(state.raises, finite)
    pool = set_member(state.pool, index, replicate(member))
    state = State(coreset, average, opt_state, pool, state.key, done, raises, recipe)
    return replicate((state, metrics))


@functools.cache  # so that a second run with the very same strategies compiles nothing
def compiled_step() -> Any:
    """`step`, batch first, jitted for the backend; the state's memory is taken over."""
    return _compiled(lambda batch, state: step(state, batch))


@functools.cache
def compiled_tune() -> Any:
    """`tune`, batch first, likewise."""
    return _compiled(lambda batch, state: tune(state, batch))


def _compiled(function: Callable) -> Any:
    return eqx.filter_jit(
        function,
        donate="all-except-first",
        compiler_options=compiler_options(),  # pyright: ignore[reportCallIssue]
    )
