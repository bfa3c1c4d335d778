"""Types shared by signatures, and names for functions made by others."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

# Types that strict checkers call unknown; to them they are anything.
if TYPE_CHECKING:
    Device: TypeAlias = Any
    PyTree: TypeAlias = Any
else:
    from jax import Device as Device
    from jaxtyping import PyTree as PyTree

F = TypeVar("F", bound=Callable)


def named(name: str, function: F) -> F:
    """The function, which a recipe will call by what it was made by, as in `ema(0.99)`."""
    function.__name__ = name
    return function


def called(function: Callable) -> str:
    """What a function was `named`; any other is `custom`."""
    name = getattr(function, "__name__", "")
    return name if name.endswith(")") else "custom"
