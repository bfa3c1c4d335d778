"""Types shared by signatures."""

from typing import TYPE_CHECKING, Any, TypeAlias

# Types that strict checkers call unknown; to them they are anything.
if TYPE_CHECKING:
    Device: TypeAlias = Any
    PyTree: TypeAlias = Any
else:
    from jax import Device as Device
    from jaxtyping import PyTree as PyTree
