"""How long the host is held by a step: called as compiled, as the loop does, and by `filter_jit`.

    python benchmarks/waiting.py

The default method's head-only step at 1 image per class, 30 networks of a pool, 20 steps of each in
turn, three times. What the host is not held for, it has for the next batch while the device works.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from _common import print_header
from rcig_eqx import Coreset, Recipe, convnet_for, init
from rcig_eqx.methods import frepo
from rcig_eqx.run._step import compiled_step

STEPS = 20


def held(step, state, batch):
    """The next state, and milliseconds a step: of all, and of the call alone."""
    calls, began = 0.0, time.perf_counter()
    for _ in range(STEPS):
        called = time.perf_counter()
        state, _ = step(batch, state)
        calls += time.perf_counter() - called
    jax.block_until_ready(eqx.filter(state, eqx.is_array))
    each = (time.perf_counter() - began, calls)
    return state, [1e3 * seconds / STEPS for seconds in each]


def main() -> None:
    print_header("Milliseconds of a step, and of them the host is held for")
    images = jr.normal(jr.key(0), (10, 28, 28, 1))
    batch = jr.normal(jr.key(1), (64, 28, 28, 1)), jnp.arange(64) % 10
    print(f"{'width':>6}{'filter_jit':>12}{'held':>8}{'compiled':>10}{'held':>8}")
    for width in (2, 32):
        coreset = Coreset(images, jnp.eye(10), jnp.zeros(()))
        recipe = Recipe(frepo(), convnet_for((28, 28, 1), 10, width=width))
        state, by_jit = init(coreset, recipe, key=jr.key(2)), compiled_step()
        compiled = by_jit.lower(batch, state).compile()
        state, _ = by_jit(batch, state)
        for _ in range(3):
            state, (jitted, held_by_jit) = held(by_jit, state, batch)
            state, (called, held_by_call) = held(compiled, state, batch)
            numbers = f"{held_by_jit:>8.1f}{called:>10.1f}{held_by_call:>8.1f}"
            print(f"{width:>6}{jitted:>12.1f}{numbers}", flush=True)


if __name__ == "__main__":
    main()
