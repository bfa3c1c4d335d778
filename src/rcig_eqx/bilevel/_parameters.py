"""What the parameters and losses of a bilevel problem may be."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import PyTree


def split(name: str, tree: PyTree, filter_spec: PyTree) -> tuple[PyTree, PyTree]:
    """What is differentiated, and the rest; `ValueError` if it cannot be."""
    if filter_spec is eqx.is_inexact_array:
        check_numbers(name, tree)
    tree = as_arrays(tree)
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
                f"{where} is an equinox.nn.State, whose statistics no gradient step minimizes "
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


def as_arrays(tree: PyTree) -> PyTree:
    """The pytree with its Python floats as arrays, as `jax.grad` takes them.

    Those in an Equinox module are settings, by Equinox's convention, and stay as they are.
    """

    def convert(x: Any) -> Any:
        return jnp.asarray(x) if isinstance(x, float | complex) else x

    return jax.tree.map(convert, tree, is_leaf=_is_module)


def check_numbers(name: str, tree: PyTree) -> None:
    """Tell of numbers that look like parameters and would be held fixed.

    `ValueError` for a Python integer, a warning for a Python float in a module that is not one of
    Equinox's own.
    """
    inside = _is_module(tree)

    def is_part(x: Any) -> bool:
        return _is_module(x) and x is not tree

    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_part):
        where = name + jax.tree_util.keystr(path)
        if is_part(x):
            check_numbers(where, x)
        elif type(x) is int and not inside:
            raise ValueError(
                f"{where} is the Python integer {x}, which has no gradient: write it as a float, "
                "or hold it fixed by filter_spec."
            )
        elif type(x) is float and inside and not type(tree).__module__.startswith("equinox."):
            warnings.warn(
                f"{where} is the Python float {x} in a module, and is held fixed. Make it a "
                "jax.numpy array to differentiate it, or equinox.field(static=True) to keep it so.",
                stacklevel=5,
            )


def _is_module(x: Any) -> bool:
    return isinstance(x, eqx.Module)


def check_scalar(
    name: str, loss: Callable[..., Any], *trees: PyTree, has_aux: bool = False
) -> None:
    """Raise `ValueError` unless a loss gives one real number, and aux after it under `has_aux`."""
    out = eqx.filter_eval_shape(loss, *trees)
    if has_aux:
        out, _ = check_pair(name, out)
    if isinstance(out, tuple):
        raise ValueError(f"{name} returns a tuple: return the loss alone, or pass has_aux=True.")
    is_array = isinstance(out, jax.ShapeDtypeStruct)
    if not (is_array and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        what = f"{out.dtype}{list(out.shape)}" if is_array else type(out).__name__
        raise ValueError(
            f"{name} returns {what}, not one real number: take the sum or the mean in it."
        )


def check_pair(name: str, out: Any) -> tuple[Any, Any]:
    """What a function returned under `has_aux`; `ValueError` unless it is a pair."""
    if not (isinstance(out, tuple) and len(out) == 2):
        what = "inner_params" if name == "minimize" else "loss"
        raise ValueError(f"{name} must return ({what}, aux) under has_aux=True.")
    return out


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
