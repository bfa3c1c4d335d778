"""How much memory a step takes, by the compiler's own account, before anything is run."""

import dataclasses
import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from .._algorithm import init
from .._backend import available_memory, compiler_options, library_workspace
from .._coreset import Coreset
from .._recipe import Recipe
from .._types import Device
from ._guard import step
from ._step import tuned_structure


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a step holds on its device at once.

    - `state`: ψ and its average, the optimizer, the pool with its optimizers; updated in place.
    - `batch`: the outer batch.
    - `temporaries`: all that the step makes on the way, at its peak.
    """

    state: int
    batch: int
    temporaries: int

    @property
    def total(self) -> int:
        """The sum of the three."""
        return self.state + self.batch + self.temporaries

    def __str__(self) -> str:
        parts = (("state", self.state), ("batch", self.batch), ("temporaries", self.temporaries))
        listed = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in parts)
        return f"{self.total / 1e6:,.1f} MB ({listed})"


def estimate_memory(recipe: Recipe, coreset: Coreset, batch_size: int) -> MemoryEstimate:
    """What a step of this recipe will take, without taking it.

    Compiles the step for arrays of the right shapes, of which none is made, and reads the
    compiler's allocation; what matrix products make on the side is added. Beside it a run holds
    the training images, and the compiler itself, for a while, some hundred megabytes.

    **Arguments:**

    - `recipe`: the strategies of the run.
    - `coreset`: the distilled set it starts from; its shapes alone matter.
    - `batch_size`: images of the outer batch.
    """
    state = eqx.filter_eval_shape(lambda c: init(c, recipe, key=jr.key(0)), coreset)
    images = jax.ShapeDtypeStruct((batch_size, *coreset.images.shape[1:]), coreset.images.dtype)
    batch = (images, jax.ShapeDtypeStruct((batch_size,), jnp.int32))
    state = tuned_structure(state, batch)
    shapes, rest = eqx.partition(state, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def arrays_alone(shapes: PyTree, batch: tuple) -> PyTree:
        return eqx.filter(step(eqx.combine(shapes, rest), batch), eqx.is_array)

    jitted = jax.jit(arrays_alone, donate_argnums=0, compiler_options=compiler_options())
    return memory_of(jitted.lower(shapes, batch).compile(), batch)


def memory_of(compiled: jax.stages.Compiled, batch: tuple) -> MemoryEstimate:
    """The estimate of a compiled step and the batch it is compiled for, of one device."""
    analysis: Any = compiled.memory_analysis()
    temporaries = analysis.temp_size_in_bytes + library_workspace(compiled.as_text() or "")
    shapes = [x.sharding.shard_shape(x.shape) if x.sharding else x.shape for x in batch]
    of_batch = sum(math.prod(s) * x.dtype.itemsize for s, x in zip(shapes, batch, strict=True))
    return MemoryEstimate(
        analysis.argument_size_in_bytes - of_batch,
        of_batch,
        temporaries + analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    )


def check_memory(estimate: MemoryEstimate, batch_size: int, device: Device | None = None) -> None:
    """Warn, with what to change, if a step takes more memory than there is on the device."""
    available = available_memory(device)
    # The state is there already.
    if available is None or estimate.batch + estimate.temporaries <= available:
        return
    advice = (
        "a smaller pool, as pool=PoolSchedule(size=10)"
        if estimate.state > estimate.temporaries
        else f"a batch_size below {batch_size}, fewer images_per_class or a narrower network"
    )
    warnings.warn(
        f"A step is estimated to take {estimate}, and {available / 1e6:,.0f} MB are free: it may "
        f"run out of memory. What helps most: {advice}.",
        RuntimeWarning,
        stacklevel=2,
    )
