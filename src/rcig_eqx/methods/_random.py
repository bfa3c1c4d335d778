"""The method that does nothing: random real inputs, for comparison."""

import jax
import jax.numpy as jnp

from ..bilevel import Hypergradient
from ._method import AbstractMethod


class RandomSubset(AbstractMethod):
    """Leaves the start as it is: with real inputs, a random subset of the training set (Table 1).

    One step is as good as many. It has no outer loss: the one in the history is 0. `evaluate` shows
    the same beside every result as its baseline.
    """

    def hypergradient(self, model, coreset, inputs, targets, /, *, key):
        del model, inputs, targets, key
        return Hypergradient(jnp.zeros(()), jax.tree.map(jnp.zeros_like, coreset), {})


def random_subset() -> RandomSubset:
    """A `RandomSubset`."""
    return RandomSubset()
