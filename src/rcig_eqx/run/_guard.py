"""The guard around a step: what is not finite is rejected, said why, and followed by a larger λ."""

import functools
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from .. import _algorithm
from .._algorithm import Batch, Drawn, Moved, State, on_set
from .._coreset import Coreset
from .._pool import Member, each_network, get_member
from .._recipe import updated
from .._sharding import replicate
from .._subsample import in_chunks
from .._types import PyTree
from ..bilevel import Hypergradient
from ..methods import AbstractMethod
from ..models import AbstractNetwork
from ..solvers._solve import together

L2_FACTOR = 10.0  # λ grows by so much after a rejected step, and shrinks after an accepted one
MAX_RAISES = 4  # at most so many times

SOLVE = "the solve did not end in finite numbers"

# In the order in which one causes the next.
CAUSES = (
    "",
    "the outer batch holds pixels that are not finite",
    "the network diverged, its parameters or features are not finite",
    SOLVE,
    "the outer loss is not finite",
    "the gradient is not finite",
    "the update of the distilled set is not finite: lower the optimizer's learning rate",
)


def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
    """One iteration of Algorithm 1, guarded. Pure and jittable (`equinox.filter_jit`).

    Draws a network from the pool, moves ψ along the method's hypergradient on the outer batch,
    averages it, then trains that network on the new ψ; `_algorithm.step` has these lines.

    A step whose hypergradient or update is not finite is rejected: ψ and its optimizer stay, the
    network that gave it is replaced, and the method's λ is ten times larger in the next step, up to
    10⁴ times; every accepted step takes one such raise back. Of several networks a step
    (`PoolSchedule.networks_per_step`) the hypergradients are averaged, and one that is not finite
    is left out and its network replaced.

    **Arguments:** the state, and a batch of preprocessed inputs and integer labels.

    **Returns:** the next state, and metrics: `loss`, `gradient_norm` (of the inputs), `network`
    (its place in the pool), `rejected`, and the method's own, such as `accuracy`, `iterations` and
    `residual`. Where a network's hypergradient was not finite, or the update was not, also the
    `cause` and the `condition` number of the ridge head there; both are zero else.
    """
    after, metrics = _algorithm.step(state, batch, guarded_move)
    raises = next_raises(state.raises, ~metrics["rejected"])
    return replicate((eqx.tree_at(lambda s: s.raises, after, raises), metrics))


def guarded_move(state: State, drawn: Drawn) -> Moved:
    """`_algorithm.move` at one network or several, or ψ as it was.

    The statistics tell `rejected`, `cause`, `condition`, and the `network` that they are of.
    """
    recipe, inputs = state.recipe, drawn.inputs
    shown = functools.partial(recipe.shown, key=drawn.augment_key)
    coreset, pull_back = jax.vjp(shown, state.psi)
    method = raise_l2(recipe.chosen()[0], state.raises, coreset.labels.dtype)

    def at(member: Member, key: PRNGKeyArray) -> tuple[Hypergradient, Bool[Array, ""]]:
        model = on_set(member.model, coreset)
        result = method.hypergradient(model, coreset, inputs, drawn.targets, key=key)
        return result, all_finite((result.value, result.gradient))

    each, sound = each_network(at, drawn.member, recipe.pool, key=drawn.key)
    several = recipe.pool.networks_per_step > 1
    result = average_networks(each, sound) if several else each
    (gradient,) = pull_back(result.gradient)
    psi, opt_state = updated(recipe.optimizer, gradient, state.opt_state, state.psi, result.value)
    finite = jnp.any(sound) & all_finite((gradient, psi))
    finite = finite & still_finite(opt_state, state.opt_state)
    psi, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (psi, opt_state),
        (state.psi, state.opt_state),
    )
    worst = jnp.argmin(sound)  # the first network to give no finite hypergradient, if one did

    def explained() -> tuple[Int[Array, ""], Scalar]:
        one = get_member((drawn.member, each), worst) if several else (drawn.member, each)
        model = on_set(one[0].model, coreset)
        cause, condition = diagnose(method, model, coreset, inputs, one[1])
        return cause, condition.astype(result.value.dtype)

    cause, condition = jax.lax.cond(
        finite & jnp.all(sound),
        lambda: (jnp.zeros((), jnp.int32), jnp.zeros_like(result.value)),
        explained,
    )
    told = {"rejected": ~finite, "cause": cause, "condition": condition}
    told["network"] = drawn.place[worst] if several else drawn.place
    # A network that gave no finite hypergradient is due for replacement.
    age = jnp.where(sound & finite, drawn.member.age, recipe.pool.max_steps)
    member = Member(drawn.member.model, drawn.member.opt_state, age)
    return Moved(
        member, Hypergradient(result.value, result.gradient, told | result.stats), psi, opt_state
    )


def average_networks(each: Hypergradient, sound: Bool[Array, " networks"]) -> Hypergradient:
    """The mean of several networks' hypergradients, without those that are not sound.

    NaN where no network gave one. Statistics are taken together as `solvers._solve.TOGETHER` says.
    """

    def mean(x: Array) -> Array:
        weight = sound.reshape(-1, *[1] * (x.ndim - 1))
        total = jnp.sum(jnp.where(weight, x, jnp.zeros_like(x)), axis=0)
        return total / jnp.sum(sound).astype(x.dtype)

    return Hypergradient(
        mean(each.value),
        jax.tree.map(mean, each.gradient),
        {name: together(name, x, mean(x)) for name, x in each.stats.items()},
    )


def raise_l2(method: AbstractMethod, raises: Int[Array, ""], dtype: DTypeLike) -> AbstractMethod:
    """The method with its λ times 10 to the power of `raises`."""
    return method.with_raised_l2(jnp.asarray(L2_FACTOR, dtype) ** raises.astype(dtype))


def next_raises(raises: Int[Array, ""], finite: Array) -> Int[Array, ""]:
    """One more after a rejected step, one less after an accepted one."""
    return jnp.where(finite, jnp.maximum(raises - 1, 0), jnp.minimum(raises + 1, MAX_RAISES))


def diagnose(
    method: AbstractMethod,
    model: AbstractNetwork,
    coreset: Coreset,
    inputs: Float[Array, "b *shape"],
    result: Hypergradient,
) -> tuple[Int[Array, ""], Scalar]:
    """Why a hypergradient is not finite, and the condition number of the head's ridge system.

    **Returns:** an index into `CAUSES`, and the condition number of h hᵀ + λI, NaN where the
    features h are not finite or the method does not solve for the head. Costs a forward pass over
    the distilled set and the eigenvalues of an n × n matrix.
    """
    X_S, y_S = coreset.support()
    h = in_chunks(model.features, X_S)
    rate, condition = method.head_l2_rate, jnp.asarray(jnp.nan, h.dtype)
    if rate is not None:
        spectrum, l2 = jnp.linalg.eigvalsh(h @ h.T), jnp.asarray(rate, h.dtype) * len(y_S)
        condition = (spectrum[-1] + l2) / (jnp.maximum(spectrum[0], 0) + l2)
    residuals = [value for name, value in result.stats.items() if "residual" in name]
    # A rectifier may turn NaN into zero, so that finite features are no proof.
    network = (eqx.filter(model, eqx.is_inexact_array), h)
    checks = (inputs, network, residuals, result.value, result.gradient)
    bad = jnp.stack([*(~all_finite(values) for values in checks), jnp.asarray(True)])
    return 1 + jnp.argmax(bad).astype(jnp.int32), condition


def all_finite(values: object) -> Array:
    """Whether every number of a pytree is finite; true of an empty one."""
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(values)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)


def still_finite(now: PyTree, before: PyTree) -> Array:
    """Whether an optimizer's state is finite where it was.

    It may hold infinities of its own; what overflows now would stall it for ever.
    """
    floats = (eqx.filter(tree, eqx.is_inexact_array) for tree in (now, before))
    kept = jax.tree.map(lambda new, old: jnp.isfinite(new) | ~jnp.isfinite(old), *floats)
    return jnp.all(jnp.stack([jnp.asarray(True), *map(jnp.all, jax.tree.leaves(kept))]))


def explain(step: int, metrics: Mapping[str, float]) -> str:
    """What happened in a rejected step, in words."""
    text = f"step {step}, network {metrics['network']:.0f}: {CAUSES[int(metrics['cause'])]}"
    condition = metrics["condition"]
    if condition > 0:  # not NaN
        text += f" (condition number of the ridge head {condition:.0e})"
    return text
