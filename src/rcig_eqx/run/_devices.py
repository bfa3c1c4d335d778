"""More than one device: the mesh, what lies how on it, and what its processes agree on.

The outer batch is split over the axis `BATCH`, the networks of a step over the axis `NETWORK`,
and everything else is on every device. XLA's partitioner does the rest: what a method computes of
the outer batch ends in sums over it, and those alone cross from device to device.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Integer, Shaped

from .._checks import ArgumentError
from .._sharding import BATCH, NETWORK
from .._types import Device
from ..data import DataError
from ._identity import numbers_of

T = TypeVar("T")


def make_mesh(devices: Sequence[Device], *, networks_per_step: int = 1) -> Mesh:
    """A mesh with the axes ("network", "batch") of devices, which may be of several processes.

    The networks of a step are divided as far as their number and that of the devices have a
    common factor; what is left of the devices divides the outer batch. Devices next to each other
    in the sequence share the rows of a batch, and so the larger traffic.

    Raises `ValueError` for devices that do not make a mesh.
    """
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise ValueError(f"devices is {devices!r}: pass a sequence of them, as jax.devices().")
    if not devices:
        raise ValueError("devices is empty: pass at least one, as jax.devices().")
    if len(set(devices)) < len(devices):
        raise ValueError(f"devices holds one twice: {list(devices)}. Pass each once.")
    platforms = sorted({d.platform for d in devices})
    if len(platforms) > 1:
        raise ValueError(f"devices are of {' and '.join(platforms)}: pass those of one platform.")
    processes = {d.process_index for d in devices}
    if processes != {jax.process_index()} and len(processes) < jax.process_count():
        raise ValueError(
            f"devices are of processes {sorted(processes)} of {jax.process_count()}: pass some of "
            "every process, as jax.devices(), or only this one's, as jax.local_devices()."
        )
    ordered = sorted(devices, key=lambda d: d.process_index)  # stable: neighbors stay so
    networks = int(np.gcd(networks_per_step, len(ordered)))
    grid = np.asarray(ordered).reshape(-1, networks).T
    return Mesh(grid, (NETWORK, BATCH), axis_types=(AxisType.Auto,) * 2)


def first_devices(count: int | None) -> list[Device] | None:
    """The first so many of JAX's devices, for a command's `--devices`; `None` for `None`.

    Raises `ValueError` where there are fewer.
    """
    there = jax.devices()
    if count is not None and count > len(there):
        raise ArgumentError(
            "devices", f"is {count}, and JAX sees {len(there)} of them: pass at most that."
        )
    return None if count is None else there[:count]


def shared_batch(mesh: Mesh | AbstractMesh | None, batch_size: int) -> int:
    """The largest batch up to this one that gives every device as many rows, one at least."""
    parts = mesh.shape[BATCH] if mesh else 1
    return max(parts, batch_size - batch_size % parts)


def check_batch_divides(mesh: Mesh | AbstractMesh, batch_size: int) -> None:
    """Raise `ValueError` unless every device gets the same number of rows of a batch."""
    near, parts = shared_batch(mesh, batch_size), mesh.shape[BATCH]
    if near != batch_size:
        raise ArgumentError(
            "batch_size",
            f"is {batch_size}, which {parts} devices cannot share equally: choose a multiple of "
            f"{parts}, such as {near}.",
        )


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Within, compiled steps lay out their work on the mesh; with `None`, as ever."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def place(state: T, mesh: Mesh) -> T:
    """A state, or any pytree, with its arrays whole on every device of a mesh.

    Arrays may be JAX's or numpy's, and lie anywhere. With several processes all must call this;
    the numbers are process 0's, so that they are the same everywhere even if machines differ in
    the last bit.
    """
    leaves, structure = jax.tree.flatten(state)
    movable = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array | np.ndarray)]
    keys = [i for i in movable if jnp.issubdtype(leaves[i].dtype, jax.dtypes.prng_key)]
    host = [np.asarray(numbers_of(leaves[i])) for i in movable]
    sharding = NamedSharding(mesh, PartitionSpec())
    for i, x in zip(movable, _of_process_0(host) if _several(mesh) else host, strict=True):
        placed = jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
        leaves[i] = jr.wrap_key_data(placed, impl=jr.key_impl(leaves[i])) if i in keys else placed
    return jax.tree.unflatten(structure, leaves)


def _of_process_0(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Process 0's numbers, as bytes so that nothing is rounded or summed."""
    whole = np.frombuffer(b"".join(x.tobytes() for x in arrays), np.uint8)
    whole = np.asarray(multihost_utils.broadcast_one_to_all(whole))
    ends = np.cumsum([x.nbytes for x in arrays])[:-1]
    parts = zip(arrays, np.split(whole, ends), strict=True)
    return [np.frombuffer(part.tobytes(), x.dtype).reshape(x.shape) for x, part in parts]


def own_rows(mesh: Mesh | None, batch_size: int) -> slice:
    """Which rows of every batch this process's devices work on: all without a mesh."""
    if mesh is None:
        return slice(0, batch_size)
    processes = np.vectorize(lambda d: d.process_index)(mesh.devices)
    return rows_of(jax.process_index(), processes, batch_size)


def rows_of(
    process: int, processes: Integer[np.ndarray, "networks parts"], batch_size: int
) -> slice:
    """The rows that a process needs of a batch, given whose device each place of a mesh is."""
    here = np.flatnonzero((processes == process).any(axis=0))
    each = batch_size // processes.shape[1]
    return slice(int(here.min()) * each, int(here.max() + 1) * each)


def shard_rows(
    rows: Shaped[Array | np.ndarray, "rows ..."], mesh: Mesh | None, batch_size: int
) -> Shaped[Array, "batch ..."]:
    """A batch divided over the devices, out of the rows that every process has of it.

    Without a mesh, the rows as they are, as a JAX array.
    """
    if mesh is None:
        return jnp.asarray(rows)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    if isinstance(rows, jax.Array) and rows.sharding.is_equivalent_to(sharding, rows.ndim):
        return rows
    first = own_rows(mesh, batch_size).start
    host = np.asarray(rows)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        start, stop, _ = index[0].indices(batch_size)
        return host[start - first : stop - first]

    return jax.make_array_from_callback((batch_size, *host.shape[1:]), sharding, part)


def local(tree: T, mesh: Mesh | None) -> T:
    """A replicated pytree's arrays on this process's default device; as it is without a mesh."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if eqx.is_array(x) else x, tree)


def leads(mesh: Mesh | None) -> bool:
    """Whether this process is the one that talks to people."""
    return not _several(mesh) or jax.process_index() == 0


def check_agreement(mesh: Mesh | None, settings: dict[str, Any]) -> None:
    """Raise `ValueError` on every process unless all have the same settings.

    A step waits for every process: two different runs would wait for each other for ever.
    """
    if not _several(mesh):
        return
    digest = np.asarray(zlib.crc32(repr(settings).encode()), np.uint32)
    everywhere = np.asarray(multihost_utils.process_allgather(digest)).ravel()
    if len(set(everywhere.tolist())) > 1:
        raise ValueError(
            f"The {jax.process_count()} processes were asked for different runs; this one, "
            f"{jax.process_index()}, for {settings}. Give all the same data, arguments and key."
        )


@contextlib.contextmanager
def raised_on_all(mesh: Mesh | None) -> Iterator[None]:
    """What one process of a mesh raises within, every one raises after it.

    Each would otherwise wait for ever for one that has left. The others know its words, and its
    type where it is one of `_SHARED`; it is a `RuntimeError` else.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if not _several(mesh):
        if error:
            raise error
        return
    text = f"{type(error).__name__}:{error}".encode()[:_LONGEST] if error else b""
    line = np.frombuffer(text.ljust(_LONGEST, b"\0"), np.uint8)
    everywhere = np.asarray(multihost_utils.process_allgather(line)).reshape(-1, _LONGEST)
    if error:
        raise error
    for process, other in enumerate(everywhere):
        name, colon, words = other.tobytes().rstrip(b"\0").decode(errors="replace").partition(":")
        if colon:
            kind = next((kind for kind in _SHARED if kind.__name__ == name), RuntimeError)
            raise kind(f"Process {process} of {len(everywhere)}: {words}")


_LONGEST = 2048  # bytes
_SHARED = (OSError, PermissionError, FileNotFoundError, NotADirectoryError, ValueError, DataError)


def wait_for_all(mesh: Mesh | None) -> None:
    """Return once every process of a mesh has called this."""
    if _several(mesh):
        multihost_utils.sync_global_devices("rcig_eqx")


class Agreement:
    """Lets all processes of a mesh stop after the same step.

    Called once a step with whether this process wants to stop, it answers whether any did: with
    one process at once, with several at the call before, so that no device is waited for.
    """

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh if _several(mesh) else None
        self._before: Array | None = None

    def __call__(self, wanted: bool) -> bool:
        if self._mesh is None:
            return wanted
        everyone = NamedSharding(self._mesh, PartitionSpec((NETWORK, BATCH)))
        own = np.full(1, wanted)
        flags = jax.make_array_from_callback((self._mesh.size,), everyone, lambda _: own)
        before, self._before = self._before, _any(flags)
        return before is not None and bool(before)


_any = jax.jit(jnp.any)


def _several(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of other processes."""
    here = jax.process_index()
    return mesh is not None and any(d.process_index != here for d in mesh.devices.flat)
