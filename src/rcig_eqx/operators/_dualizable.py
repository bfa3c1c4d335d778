"""An operator on the parameters that knows its dual."""

from collections.abc import Callable
from typing import Any

import lineax as lx
from jaxtyping import Array, Float

from .._types import PyTree
from ._kernel import AbstractKernel, register


def _unchanged(v: PyTree) -> PyTree:
    """v itself."""
    return v


class DualizableOperator(lx.AbstractLinearOperator):
    """JᵀWJ + D by a product of its own, and its kernel: what `solvers.Dual` takes.

    **Arguments:**

    - `primal`: the product, as any solver takes it.
    - `make_kernel`: makes the kernel; called only where the dual is solved.
    - `pad`, `restrict`: from v's structure to the kernel's parameters, and back. Where the operator
      is the Schur complement that is left after some parameters are solved for, they put zeros in
      the place of those, and drop them.
    """

    primal: lx.AbstractLinearOperator
    make_kernel: Callable[[], AbstractKernel]
    pad: Callable[[PyTree], PyTree] = _unchanged
    restrict: Callable[[PyTree], PyTree] = _unchanged

    def mv(self, vector: PyTree) -> PyTree:
        """(JᵀWJ + D) v."""
        return self.primal.mv(vector)

    def as_matrix(self) -> Float[Array, "numbers numbers"]:
        """The primal operator's matrix."""
        return self.primal.as_matrix()

    def in_structure(self) -> Any:
        """That of v."""
        return self.primal.in_structure()

    def out_structure(self) -> Any:
        """That of v."""
        return self.primal.in_structure()

    def transpose(self) -> "DualizableOperator":
        """The same: it is symmetric."""
        return self


register(DualizableOperator, lambda operator: lx.materialise(operator.primal))
