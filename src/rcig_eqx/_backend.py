"""The choices that depend on the hardware, in one place.

Measured on two x86 cores (`benchmarks/convolution.py`, `benchmarks/step.py`); what holds for GPU
and TPU follows the vendors' convolutions and is unmeasured. All go by JAX's default backend when
a function is first traced, not by where its arrays are.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Literal, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType

from ._types import Device

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# How much of the distilled set's Jacobian is worked on together. Larger takes more memory; a GPU
# with some to spare may prefer larger.
JACOBIAN_NUMBERS = 60_000_000  # numbers of it held at once
JACOBIAN_ROWS = 100  # rows of it multiplied together
IMAGES_AT_ONCE = 16  # distilled images differentiated together
# Images whose activations are kept; more go in chunks of so many, and repeat their forward pass.
# The paper's outer batch stays whole. Unmeasured.
IMAGES_HELD = 1024


@contextlib.contextmanager
def transfers_allowed() -> Iterator[None]:
    """Within, what the host holds goes to the device unasked, whatever a user's guard forbids."""
    with jax.transfer_guard("allow"):
        yield


@contextlib.contextmanager
def usual_settings() -> Iterator[None]:
    """Likewise, and numbers of different dtypes are promoted: optax cannot do without."""
    with transfers_allowed(), jax.numpy_dtype_promotion("standard"):
        yield


def conv_formulation() -> Literal["own", "lax"]:
    """How `conv2d` is written for JAX's default backend.

    On CPU the transposes that JAX has for `lax.conv` run many times slower inside `lax.scan` or
    `while_loop` than outside; there every derivative is written as a forward convolution
    (`models/_cpu_convolution.py`). Elsewhere the vendor's convolution is the right one, and on a
    mesh with manual or explicit axes JAX's is the one that follows their types.
    """
    axes = jax.sharding.get_abstract_mesh().axis_types
    transposable = jax.default_backend() == "cpu" and all(kind == AxisType.Auto for kind in axes)
    return "own" if transposable else "lax"


def networks_at_once(num_networks: int) -> int:
    """How many evaluation networks to train together by `vmap`: one on CPU, all elsewhere."""
    return 1 if jax.default_backend() == "cpu" else num_networks


def compiler_options() -> dict[str, str]:
    """Options for `jit` of a whole step.

    XLA's CPU compiler by default orders work for concurrency, and then keeps temporaries of
    independent parts at once: up to twice the memory for no time gained at these sizes
    (`benchmarks/step.py` shows either with `--default-schedule`).
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def library_workspace(program: str) -> int:
    """Bytes that a compiled program's products and convolutions ask for on the side.

    XLA's CPU compiler leaves them out of its account (`benchmarks/memory.py`). A product of two
    matrices as they are, the form of a dense layer, fills another array of its result's size. A
    whole chain of layers may be one call of a library, which makes the convolutions' results and
    padded operands itself and lets each go after the next: the two largest are counted. What other
    backends do is unmeasured.
    """
    if jax.default_backend() != "cpu":
        return 0
    products = [_bytes(*found) for found in _PLAIN_PRODUCT.findall(program)]
    called = set(_LIBRARY_CALL.findall(program))
    parts = (part.strip() for part in program.split("\n\n"))
    chains = [_of_chain(part) for part in parts if part.split(" ")[0].strip("%") in called]
    return max([*products, *chains], default=0)


def _of_chain(computation: str) -> int:
    """The two largest arrays that a chain of convolutions makes within."""
    arrays = {name: (bits, shape) for name, bits, shape in _ARRAY.findall(computation)}
    made = []
    for root, name, operand, pads in _CONVOLUTION.findall(computation):
        if not root:
            made.append(_bytes(*arrays[name]))
        if pads and operand in arrays:
            bits, shape = arrays[operand]
            _, h, w, _ = map(int, shape.split(","))
            top, bottom, left, right = map(int, re.split("[_x]", pads))
            padded = (h + top + bottom) * (w + left + right)
            made.append(_bytes(bits, shape) // (h * w) * padded)
    return sum(sorted(made)[-2:])


def _bytes(bits: str, shape: str) -> int:
    return int(bits) // 8 * math.prod(map(int, shape.split(",")))


_ARRAY = re.compile(r"%(\S+) = [a-z]+(\d+)\[([\d,]+)\]")
_LIBRARY_CALL = re.compile(r" fusion\(.*calls=%([^\s,]+).*__ynn_fusion")
_CONVOLUTION = re.compile(
    r"(ROOT )?%(\S+) = \S+ convolution\(%([^\s,]+),.*?window={[^}]*?(?:pad=(\d+_\d+x\d+_\d+))?}"
)
_PLAIN_PRODUCT = re.compile(
    r"= [a-z]+(\d+)\[([\d,]+)\]\S* dot\(.*lhs_contracting_dims=\{1\}, rhs_contracting_dims=\{0\}"
)


def zeros(tree: T) -> T:
    """Zeros in an array's or pytree's place that are no constants to the compiler.

    XLA on CPU (jaxlib 0.10.2) miscompiles tangent passes along constant zeros: where it hands a
    matrix product with such an operand to its fused kernels, the result is arbitrary memory.
    """
    return jax.tree.map(lambda x: 0 * x, tree)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function's matrix products in full float32, where GPU and TPU would round them."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped


def available_memory(device: Device | None = None) -> int | None:
    """Bytes that can still be allocated on this process's device; `None` where nobody says."""
    stats = (device or jax.local_devices()[0]).memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None  # no Linux
