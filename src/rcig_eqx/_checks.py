"""Checks of arguments that every room makes, and the error that names one."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct
from jax.core import Tracer


class ArgumentError(ValueError):
    """An argument that cannot be used: its name, and what is wrong with it."""

    def __init__(self, argument: str, problem: str):
        super().__init__(argument, problem)
        self.argument, self.problem = argument, problem

    def __str__(self) -> str:
        return f"{self.argument} {self.problem}"


def check_number(name: str, value: Any, fits: Callable[[Any], bool], must: str) -> None:
    """Raise `ValueError` for what is no number or does not fit.

    What is traced has no value yet, and an array of several is for `vmap`: both pass.
    """
    if isinstance(value, Tracer | ShapeDtypeStruct) or getattr(value, "ndim", 0):
        return
    try:
        right = fits(value.item() if hasattr(value, "item") else value)
    except TypeError:  # as of a text
        right = False
    if not right:
        raise ArgumentError(name, f"is {value!r}: it must be {must}.")


def check_flags(**flags: Any) -> None:
    """Raise `ValueError` for what is neither `True` nor `False`: Python takes a "no" for true."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ArgumentError(name, f"is {value!r}: pass True or False.")


def check_counts(**counts: Any) -> None:
    """Raise `ValueError` for a number that is not a whole one of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ArgumentError(name, f"is {value!r}: it must be a whole number of at least 1.")


def check_key(key: Any) -> None:
    """Raise `ValueError` for what is not one key, new-style or old."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = getattr(key, "dtype", None) == np.uint32
    if not ((typed and key.ndim == 0) or (raw and key.ndim == 1)):
        raise ArgumentError("key", f"is {key!r}: pass one key, such as jax.random.key(0).")


def check_known(what: str, name: Any, known: Iterable[str]) -> None:
    """Raise `ValueError` for a name that is not known, with the nearest ones that are."""
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(str(name).lower(), known, n=2, cutoff=0.5)
    meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ArgumentError(what, f"is {name!r}: {meant}choose one of {', '.join(known)}.")
