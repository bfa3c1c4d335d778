"""Checks of arguments that every room makes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer


def check_number(name: str, value: Any, fits: Callable[[Any], Any], must: str) -> None:
    """Raise `ValueError` for what is no number or does not fit. Traced and missing ones pass."""
    if value is None or isinstance(value, Tracer):
        return
    try:
        right = bool(fits(value))
    except (TypeError, ValueError):  # a string, or an array of several
        right = False
    if not right:
        raise ValueError(f"{name} is {value!r}: it must be {must}.")


def check_flags(**flags: Any) -> None:
    """Raise `ValueError` for what is neither `True` nor `False`: any other text counts as true."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} is {value!r}: pass True or False.")


def check_counts(**counts: Any) -> None:
    """Raise `ValueError` for a number that is not a whole one of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1.")
