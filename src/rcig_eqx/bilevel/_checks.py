"""Checks of a bilevel problem, made before any work starts."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Scalar

from .._checks import check_number
from .._types import PyTree
from ..solvers._definite import check_ready, check_solver, traits
from ._inner import AbstractInnerLoss

Solver = lx.AbstractLinearSolver[Any]
Preconditioner = lx.AbstractLinearOperator | Callable[[PyTree], PyTree]


def split(name: str, tree: PyTree, filter_spec: PyTree) -> tuple[PyTree, PyTree]:
    """What is differentiated, and the rest; `ValueError` if it cannot be."""
    try:
        moving, frozen = eqx.partition(tree, filter_spec)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The filter_spec of {name} does not fit it: give a function of a leaf, or a pytree of "
            "booleans that is a prefix of it."
        ) from error

    def is_state(x: Any) -> bool:
        return isinstance(x, eqx.nn.State)

    for path, leaf in jax.tree_util.tree_leaves_with_path(moving, is_leaf=is_state):
        where = name + jax.tree_util.keystr(path)
        if is_state(leaf):
            if not jax.tree.leaves(leaf):
                continue
            raise ValueError(
                f"{where} is an equinox.nn.State, whose statistics no gradient step minimises "
                "over: pass it in args, and return the new one as aux if it is needed."
            )
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{where} is {type(leaf).__name__ if dtype is None else dtype}, which has no "
                "gradient here: leave it out of filter_spec, make it a floating-point array, or "
                "split a complex one into two."
            )
    if not jax.tree.leaves(moving):
        raise ValueError(
            f"{name} has no floating-point array to differentiate: pass jax.numpy arrays, and a "
            "filter_spec that keeps some of them."
        )
    return moving, frozen


def check_scalar(
    name: str, loss: Callable[..., Any], *trees: PyTree, has_aux: bool = False
) -> None:
    """Raise `ValueError` unless a loss gives one real number, and aux after it under `has_aux`."""
    out = eqx.filter_eval_shape(loss, *trees)
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(f"{name} must return (loss, aux) under has_aux=True.")
        out = out[0]
    if isinstance(out, tuple):
        raise ValueError(f"{name} returns a tuple: return the loss alone, or pass has_aux=True.")
    is_array = isinstance(out, jax.ShapeDtypeStruct)
    if not (is_array and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        what = f"{out.dtype}{list(out.shape)}" if is_array else type(out).__name__
        raise ValueError(
            f"{name} returns {what}, not one real number: take the sum or the mean in it."
        )


def check_like(name: str, tree: PyTree, like: PyTree) -> None:
    """Raise `ValueError` unless a pytree has the structure, shapes and dtypes of θ."""
    kinds = [
        jax.tree.map(lambda x: (x.shape, x.dtype), eqx.filter(t, eqx.is_array))
        for t in (tree, like)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{name} is not shaped like what is differentiated of inner_params: pass the adjoint "
            "of an earlier Hypergradient of the same problem."
        )


def check_adjoint(
    solver: Solver,
    inner_loss: AbstractInnerLoss,
    damping: float | Scalar,
    preconditioner: Preconditioner | None,
    warm_start: PyTree = None,
) -> None:
    """Raise `ValueError` for a solver that does not fit the problem."""
    check_solver("solver", solver)
    check_ready(solver)
    takes, name = traits(solver), type(solver).__name__
    if takes.dual and not inner_loss.knows_dual:
        raise ValueError(
            f"solver is {name}, which needs to know that the inner loss is least squares: pass "
            "LeastSquares(residuals, l2) as inner_loss, or another solver such as "
            "ConjugateGradient()."
        )
    check_number("damping", damping, lambda d: d >= 0, "a number of at least 0")
    if preconditioner is not None and not takes.preconditioned:
        raise ValueError(
            f"solver is {name}, which takes no preconditioner: leave it out, or pass "
            "ConjugateGradient()."
        )
    if warm_start is not None and takes.dual and not takes.direct:
        raise ValueError(
            f"solver is {name}, whose unknowns are the residuals': it has no use for a warm_start "
            "of θ's. Leave it out, or pass ConjugateGradient()."
        )


def solver_options(
    preconditioner: Preconditioner | None, warm_start: PyTree, theta: PyTree
) -> dict[str, Any]:
    """Options for lineax; no derivative flows through them."""
    options: dict[str, Any] = {}
    if preconditioner is not None:
        is_operator = isinstance(preconditioner, lx.AbstractLinearOperator)
        product = preconditioner.mv if is_operator else preconditioner
        fixed = jax.lax.stop_gradient
        options["preconditioner"] = lx.FunctionLinearOperator(
            lambda v: fixed(product(fixed(v))),
            jax.eval_shape(lambda: theta),
            lx.positive_semidefinite_tag,
        )
    if warm_start is not None:
        check_like("warm_start", warm_start, theta)
        options["y0"] = jax.lax.stop_gradient(warm_start)
    return options
