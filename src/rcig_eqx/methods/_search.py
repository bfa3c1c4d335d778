"""The search for the largest learning rate of a descent (paper, appendix C)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar


def find_rate(
    monotone: Callable[[Scalar], Bool[Array, ""]], start: float, *, doublings: int = 30
) -> Float[Array, ""]:
    """The largest learning rate, to a sixth, at which a descent is monotone.

    Doubles from `start` until the descent is not, then divides by 1.2 until it is.
    """

    def grow(carry):
        rate, count = carry
        return 2 * rate, count + 1

    def growing(carry):
        rate, count = carry
        return (count < doublings) & monotone(rate)

    rate, _ = jax.lax.while_loop(
        growing, grow, (jnp.asarray(start, jnp.float32), jnp.zeros((), jnp.int32))
    )
    floor = 1e-3 * start
    return jax.lax.while_loop(
        lambda rate: (rate > floor) & ~monotone(rate), lambda rate: rate / 1.2, rate
    )
