"""Fresh networks compiled: kernels drawn as vectors against drawn in their own shapes.

    python benchmarks/start.py

Seconds of the processor to compile a pool of 30 networks of the paper's depth, as every run does
before its first step, and whether both ways draw the same numbers.
"""

import time
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from _common import print_header
from rcig_eqx import convnet_for


def in_shape(shape, dtype, *, key):
    """JAX's own initializer."""
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def pool(width: int):
    """A pool's arrays, and the seconds to compile what makes them."""
    make = convnet_for((28, 28, 1), 10, width=width)

    def arrays(k):
        return eqx.filter(eqx.filter_vmap(make)(jr.split(k, 30)), eqx.is_array)

    lowered = jax.jit(arrays).lower(jr.key(0))
    began = time.process_time()
    compiled = lowered.compile()
    return time.process_time() - began, compiled(jr.key(0))


def main() -> None:
    print_header("Compiling a pool of 30 networks")
    print(f"{'width':>6}{'as vectors':>12}{'in shape':>10}{'largest difference':>20}")
    for width in (8, 32, 128):
        vectors, a = pool(width)
        with (
            mock.patch("rcig_eqx.models._network.lecun_normal", in_shape),
            mock.patch("rcig_eqx.models._blocks.lecun_normal", in_shape),
        ):
            shaped, b = pool(width)
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        apart = max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs)
        print(f"{width:>6}{vectors:>11.1f}s{shaped:>9.1f}s{apart:>20.1e}", flush=True)


if __name__ == "__main__":
    main()
