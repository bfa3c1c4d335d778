"""Checks of arguments that every room makes."""

from typing import Any

import numpy as np


def check_counts(**counts: Any) -> None:
    """Raise `ValueError` for a number that is not a whole one of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1.")
