"""Wrong rank, wrong dtype, swapped arguments: told at the call, naming the argument.

jaxtyping and beartype check the signatures; `pyproject.toml` switches them on for every test.
"""

# ruff: noqa: E501  a case is a line
# pyright: reportArgumentType=false, reportCallIssue=false

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest

import rcig_eqx as r
from rcig_eqx._ridge import kernel_ridge
from rcig_eqx.evaluation._measure import correct

SIZE, CLASSES, N, BATCH = 6, 3, 4, 5


@pytest.fixture(scope="module")
def good():
    """Right arguments, by name."""
    keys = jr.split(jr.key(0), 4)
    model = r.convnet_for((SIZE, SIZE, 1), CLASSES, width=2, depth=1)
    coreset = r.Coreset(
        jr.normal(keys[0], (N, SIZE, SIZE, 1)), jr.normal(keys[1], (N, CLASSES)), jnp.zeros(())
    )
    images = jr.normal(keys[2], (BATCH, SIZE, SIZE, 1))
    labels = jnp.arange(BATCH) % CLASSES
    recipe = r.Recipe(
        r.methods.frepo(), model, r.coreset_optimizer(), r.PoolSchedule(size=1), r.ema(0.9)
    )
    return {
        "model": model(keys[3]),
        "coreset": coreset,
        "images": images,
        "labels": labels,
        "targets": jax.nn.one_hot(labels, CLASSES),
        "features": jr.normal(keys[2], (BATCH, 7)),
        "gram": jnp.eye(BATCH),
        "recipe": recipe,
        "state": r.init(coreset, recipe, key=jr.key(1)),
    }


def quadratic(w, psi):
    return jnp.sum((w["a"] - psi) ** 2)


def bilevel(outer=quadratic, inner=quadratic, w=None, psi=None, **changed):
    w = {"a": jnp.ones(3)} if w is None else w
    psi = jnp.ones(3) if psi is None else psi
    return r.hypergradient(outer, inner, w, psi, **({"solver": CG} | changed))


def train(model, images, labels, **changed):
    return r.evaluation.train_network(
        model, images, labels, **({"steps": 1, "key": jr.key(0)} | changed)
    )


CG = r.solvers.ConjugateGradient()
EXACT = r.methods.rcig().through

# name: a call with the right arguments g at hand, and the argument that is wrong
CASES = {
    "linearize_rank": (lambda g: r.methods.linearize(g["model"], g["images"][0]), "images"),
    "linearize_dtype": (lambda g: r.methods.linearize(g["model"], jnp.zeros((2, 6, 6, 1), "u1")), "inputs"),
    "linearize_swapped": (lambda g: r.methods.linearize(g["images"], g["model"]), "model"),
    "ntk_rank": (lambda g: r.operators.NTK(g["model"], g["targets"], 0.1), "images"),
    "ntk_swapped": (lambda g: r.operators.NTK(g["images"], g["model"], 0.1), "model"),
    "ridge_head_rank": (lambda g: r.methods.ridge_head(g["features"], g["labels"] / 1, 0.1), "labels"),
    "ridge_head_dtype": (lambda g: r.methods.ridge_head(g["features"], g["labels"], 0.1), "labels"),
    "ridge_head_rows": (lambda g: r.methods.ridge_head(g["features"], g["targets"][1:], 0.1), "labels"),
    "ridge_head_swapped": (lambda g: r.methods.ridge_head(g["features"], 0.1, g["targets"]), "labels"),
    "kernel_ridge_swapped": (lambda g: kernel_ridge(g["targets"], g["gram"], 0.1), "K_ss"),
    "kernel_ridge_l2": (lambda g: kernel_ridge(g["gram"], g["targets"], "0.1"), "l2"),
    "platt_loss_labels": (lambda g: r.platt_loss(g["targets"], g["labels"], jnp.zeros(())), "targets"),
    "platt_loss_swapped": (lambda g: r.platt_loss(jnp.zeros(()), g["targets"], g["targets"]), "predictions"),
    "platt_loss_temperature": (lambda g: r.platt_loss(g["targets"], g["targets"], jnp.ones(1)), "log_temperature"),
    "mse_loss_classes": (lambda g: r.mse_loss(g["targets"], g["targets"][:, 1:], jnp.zeros(())), "targets"),
    "squared_error_labels": (lambda g: r.SquaredError()(g["targets"], g["labels"]), "labels"),
    "label_margin_rank": (lambda g: r._losses.label_margin(g["labels"] / 1), "labels"),
    "centered_labels_dtype": (lambda g: r.initializers.centered_labels(g["labels"] / 1, CLASSES), "labels"),
    "coreset_swapped": (lambda g: r.Coreset(g["targets"], g["images"], jnp.zeros(())), "labels"),
    "coreset_rows": (lambda g: r.Coreset(g["images"], g["targets"][1:], jnp.zeros(())), "labels"),
    "coreset_dtype": (lambda g: r.Coreset(g["images"], g["labels"], jnp.zeros(())), "labels"),
    "coreset_temperature": (lambda g: r.Coreset(g["images"], g["targets"], 0.0), "log_temperature"),
    "fold_temperature": (lambda g: r._coreset.fold_temperature(g["images"]), "coreset"),
    "train_network_rank": (lambda g: train(g["model"], g["images"][..., 0], g["targets"]), "images"),
    "train_network_dtype": (lambda g: train(g["model"], g["images"], g["labels"]), "labels"),
    "train_network_swapped": (lambda g: train(g["model"], g["targets"], g["images"]), "labels"),
    "train_network_coreset": (lambda g: train(g["coreset"], g["images"], g["targets"]), "model"),
    "train_network_steps": (lambda g: train(g["model"], g["images"], g["targets"], steps=1.5), "steps"),
    "correct_dtype": (lambda g: correct(g["model"], g["images"], g["targets"]), "labels"),
    "exact_swapped": (lambda g: EXACT(g["coreset"], g["model"], g["images"], g["targets"]), "coreset"),
    "exact_labels": (lambda g: EXACT(g["model"], g["coreset"], g["images"], g["labels"]), "targets"),
    "exact_images_last": (lambda g: EXACT(g["model"], g["coreset"], g["targets"], g["images"]), "images"),
    "exact_rows": (lambda g: EXACT(g["model"], g["coreset"], g["images"], g["targets"][1:]), "targets"),
    "exact_solver": (lambda g: r.methods.rcig(solver=1), "solver"),
    "exact_chosen": (lambda g: EXACT(g["model"], g["coreset"], g["images"], g["targets"], chosen=jnp.ones(2)), "chosen"),
    "head_swapped": (lambda g: r.methods.frepo().through(g["model"], g["images"], g["coreset"], g["targets"]), "coreset"),
    "init_swapped": (lambda g: r.init(g["recipe"], g["coreset"], key=jr.key(0)), "coreset"),
    "step_swapped": (lambda g: r.step((g["images"], g["labels"]), g["state"]), "state"),
    "step_batch_swapped": (lambda g: r.step(g["state"], (g["labels"], g["images"])), "batch"),
    "step_one_hot": (lambda g: r.step(g["state"], (g["images"], g["targets"])), "batch"),
    "step_rank": (lambda g: r.step(g["state"], (g["images"][..., 0], g["labels"])), "images"),
    "hypergradient_swapped": (lambda g: bilevel(outer=jnp.ones(3)), "outer_loss"),
    "hypergradient_solver": (lambda g: bilevel(solver="cg"), "solver"),
    "hypergradient_damping": (lambda g: bilevel(damping="small"), "damping"),
    "hypergradient_damping_rank": (lambda g: bilevel(damping=jnp.ones(3)), "damping"),
    "hypergradient_preconditioner": (lambda g: bilevel(preconditioner=jnp.eye(3)), "preconditioner"),
    "differentiable_solver": (lambda g: r.implicitly_differentiable(quadratic, quadratic, solver=1), "solver"),
    "differentiable_loss": (lambda g: r.implicitly_differentiable(quadratic, 0.1, solver=CG), "inner_loss"),
}  # fmt: skip

# Told by the functions themselves, with the hook or without; what the message says
HALVES = {
    "linearize_body": (
        lambda g: r.methods.linearize(r.models.partition(g["model"])[0], g["images"]),
        "one half",
    ),
    "linearize_head": (
        lambda g: r.methods.linearize(r.models.partition(g["model"])[1], g["images"]),
        "one half",
    ),
    "train_body": (
        lambda g: train(r.models.partition(g["model"])[0], g["images"], g["targets"]),
        r"one half.*equinox\.combine\(body, head\)",
    ),
    "exact_head": (
        lambda g: EXACT(r.models.partition(g["model"])[1], g["coreset"], g["images"], g["targets"]),
        "one half",
    ),
    "hypergradient_static": (
        lambda g: bilevel(w=eqx.partition({"a": jnp.ones(3)}, eqx.is_inexact_array)[1]),
        "inner_params has no floating-point array",
    ),
    "warm_start_gradient": (
        lambda g: bilevel(warm_start=jnp.ones(3)),
        "warm_start is not shaped like what is differentiated of inner_params",
    ),
}


# What no signature tells, or tells only under the hook: a coreset made by hand.
BY_HAND = {
    "masked": (lambda x, y: (np.ma.array(x, mask=x > 0), y), "images has"),
    "long": (lambda x, y: (x, y.astype(np.longdouble)), "labels is"),
    "byte_order": (lambda x, y: (x.astype(">f4"), y), "images is >f4"),
    "label_rows": (lambda x, y: (x, y[1:]), r"labels \(3, 3\)"),
    "label_rank": (lambda x, y: (x, y[:, 0]), r"labels \(4,\)"),
    "image_rank": (lambda x, y: (x[..., 0], y), r"images are \(6, 6\)"),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_coreset_made_by_hand(good, monkeypatch, name):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    if name == "long" and np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long doubles are doubles here")
    change, message = BY_HAND[name]
    images, labels = change(*(np.array(good["coreset"].images), np.array(good["coreset"].labels)))
    test = r.data.Dataset.from_arrays(np.zeros((3, SIZE, SIZE, 1), np.uint8), [0, 1, 2])
    with pytest.raises(ValueError, match=message):
        r.evaluate(
            r.Coreset(images, labels, jnp.zeros(()), r.data.Identity()),
            test,
            key=jr.key(0),
            model=r.convnet_for((SIZE, SIZE, 1), CLASSES, width=2, depth=1),
            steps=1,
            num_networks=1,
            progress=False,
        )


@pytest.mark.parametrize("name", CASES)
def test_types_name_the_argument(good, name):
    call, argument = CASES[name]
    with pytest.raises(jaxtyping.TypeCheckError) as raised:
        call(good)
    message = str(raised.value)
    assert f"typechecking parameter '{argument}'" in message
    assert "Expected type:" in message


@pytest.mark.parametrize("name", HALVES)
def test_halves_are_told_apart(good, name):
    call, says = HALVES[name]
    with pytest.raises(ValueError, match=says):
        call(good)
