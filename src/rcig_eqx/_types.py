"""Types shared by signatures."""

from typing import TYPE_CHECKING, Any, TypeAlias

# jaxtyping's PyTree is a type that strict checkers call unknown; to them it is anything.
if TYPE_CHECKING:
    PyTree: TypeAlias = Any
else:
    from jaxtyping import PyTree as PyTree
