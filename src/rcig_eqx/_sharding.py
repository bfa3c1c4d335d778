"""How a step's arrays lie on the devices of the present mesh, where there is one.

The outer batch is split over the axis `BATCH`, the networks of a step over the axis `NETWORK`,
and everything else is on every device. `run/_devices.py` makes the mesh.
"""

from typing import TypeVar

import equinox as eqx
import jax
from jax.sharding import PartitionSpec

T = TypeVar("T")

NETWORK, BATCH = "network", "batch"


def split(axis: str, tree: T) -> T:
    """The arrays of a pytree, their leading axis divided along an axis of the present mesh.

    Without one, the very same pytree.
    """
    return _constrain(tree, PartitionSpec(axis))


def replicate(tree: T) -> T:
    """The arrays of a pytree, whole on every device of the present mesh, if there is one."""
    return _constrain(tree, PartitionSpec())


def batch_parts() -> int:
    """How many devices the present mesh divides the outer batch over: 1 if there is none."""
    return _present().get(BATCH, 1)


def _present() -> dict[str, int]:
    """The axes of the present mesh, if it is one of ours."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return shape if {NETWORK, BATCH} <= shape.keys() else {}


def _constrain(tree: T, spec: PartitionSpec) -> T:
    if not _present():
        return tree
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.with_sharding_constraint(arrays, spec), rest)
