# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false
"""What a user's code looks like to a strict type checker. `pyright` reads it; nothing runs it.

JAX's own functions are partly unknown to it and lineax has no stubs, which is not asked about.
"""

from collections.abc import Callable
from typing import Any, assert_type, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Float, Int, PRNGKeyArray

import rcig_eqx as rcig
from rcig_eqx import distill as distill, load_export as load_export, privacy
from rcig_eqx.data import stream as stream
from rcig_eqx.run import make_mesh as make_mesh
from rcig_eqx.solvers import Adam, ConjugateGradient, Dual, Neumann


def distill_once(
    images: Float[Array, "n h w c"], labels: Int[Array, " n"], key: PRNGKeyArray
) -> float:
    result = rcig.distill((images, labels), images_per_class=1, key=key, steps=10)
    assert_type(result, rcig.DistillResult)
    assert_type(result.coreset, rcig.Coreset)
    result.save("set.safetensors")
    again = rcig.load_result("set.safetensors")
    report = rcig.evaluate(again, (images, labels), key=key, num_networks=2)
    assert_type(report, rcig.evaluation.Evaluation)
    return report.mean


def attacked(result: rcig.DistillResult, train: rcig.data.Dataset, key: PRNGKeyArray) -> float:
    attacks = [privacy.Threshold(), privacy.mlp(hidden=(8,))]
    report = privacy.membership_inference(result, train, train, key=key, attacks=attacks)
    assert_type(report, privacy.PrivacyReport)
    low, high = report.curves["real"].mean_auc("MLP")[-1].interval()
    assert result.coreset.preprocess is not None
    procedure = privacy.train_on(
        rcig.convnet_for(train.image_shape, 10), result.coreset.preprocess, steps=9
    )
    shadows = privacy.train_shadows(procedure, train.images, train.labels, key=key)
    assert_type(shadows, privacy.Shadows)
    return high - low + privacy.lira(shadows, key=key).tpr[0.01][0]


def loop(state: rcig.State, batch: tuple[Array, Array]) -> tuple[rcig.State, float]:
    state, metrics = eqx.filter_jit(rcig.step)(state, batch)
    return state, float(metrics["loss"])


def start(
    coreset: rcig.Coreset, make_model: Callable[[PRNGKeyArray], rcig.models.ConvNet]
) -> rcig.State:
    recipe = rcig.Recipe(
        rcig.methods.rcig(l2_rate=1e-3),
        make_model,
        rcig.coreset_optimizer(0.01),
        rcig.PoolSchedule(size=4),
        rcig.growing_average(),
    )
    return rcig.init(coreset, recipe, key=jr.key(0))


def own_loss(predictions: Array, targets: Array, log_temperature: Array) -> Array:
    return rcig.mse_loss(predictions, targets, log_temperature) + jnp.mean(predictions**2)


def exact(
    model: rcig.models.ConvNet, coreset: rcig.Coreset, images: Array, targets: Array
) -> Array:
    method = rcig.methods.rcig(outer_loss=own_loss, solver=lx.Cholesky())
    result = method.hypergradient(model, coreset, images, targets, key=jr.key(0))
    assert_type(result, rcig.bilevel.Hypergradient)
    at = rcig.methods.linearize(model, coreset.images)
    head = rcig.methods.ridge_head(at.features, coreset.labels, 0.1)
    return result.value + head.sum()


def inner(w: Array, log_l2: Array, batch: Array) -> Array:
    return 0.5 * jnp.sum((batch @ w - 1) ** 2) + 0.5 * jnp.sum(jnp.exp(log_l2) * w**2)


def outer(w: Array, log_l2: Array, batch: Array) -> tuple[Array, dict[str, Array]]:
    error = batch @ w - 1
    return jnp.mean(error**2), {"error": error}


def outputs(w: Array, log_l2: Array, batch: Array) -> tuple[Array, Array]:
    return batch @ w, w


def convex(f: tuple[Array, Array], log_l2: Array, batch: Array) -> Array:
    return jnp.sum(f[0] ** 2) + jnp.sum(jnp.exp(log_l2) * f[1] ** 2)


def precondition(v: Array) -> Array:
    return 0.1 * v


def bilevel(w: Array, log_l2: Array, batch: Array) -> Array:
    solvers: list[lx.AbstractLinearSolver[Any]] = [
        ConjugateGradient(1e-4),
        Neumann(50),
        Adam(1e-3),
        lx.Cholesky(),
    ]
    result, aux = rcig.hypergradient(
        outer, inner, w, log_l2, batch, solver=solvers[0], has_aux=True, damping=1e-3
    )
    assert_type(result, rcig.bilevel.Hypergradient)
    plain = rcig.hypergradient(
        inner,
        rcig.bilevel.GaussNewton(outputs, convex),
        w,
        log_l2,
        batch,
        solver=solvers[1],
        warm_start=result.adjoint,
        preconditioner=precondition,
    )
    assert_type(plain, rcig.bilevel.Hypergradient)
    assert_type(plain.stats, dict[str, Array])
    if plain.result == rcig.bilevel.RESULTS.diverged:
        print(rcig.bilevel.RESULTS.diverged)
    del aux
    gradient: Array = plain.gradient
    return gradient


def residuals(w: Array, log_l2: Array, batch: Array) -> Array:
    return batch @ w - 1


def l2(log_l2: Array, batch: Array) -> Array:
    return jnp.exp(log_l2)


def minimize(start: Array, log_l2: Array, batch: Array) -> Array:
    return start - 0.1 * batch.T @ residuals(start, log_l2, batch)


def tuned(start: Array, log_l2: Array, batch: Array) -> Array:
    squares = rcig.bilevel.LeastSquares(residuals, l2)
    solve = rcig.implicitly_differentiable(minimize, squares, solver=Dual(lx.Cholesky()))

    def reduced(log_l2: Array) -> Array:
        w: Array = solve(start, log_l2, batch)
        return jnp.sum(w)

    return cast(Array, jax.grad(reduced)(log_l2))
