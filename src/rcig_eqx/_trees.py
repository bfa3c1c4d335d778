"""Arithmetic on pytrees of arrays, taken as one long vector."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Scalar

from ._types import PyTree


def dot(a: PyTree, b: PyTree) -> Scalar:
    """⟨a, b⟩ over all leaves."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, products)


def largest(a: PyTree) -> Scalar:
    """The largest absolute value over all leaves, 1 if all are zero: what to divide by."""
    sizes = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(a)]
    size = functools.reduce(jnp.maximum, sizes)
    return jnp.where(size == 0, 1, size)


def divide(a: PyTree, scale: Scalar) -> PyTree:
    """a / scale, in the leaves' own dtypes."""
    return jax.tree.map(lambda x: x / scale.astype(x.dtype), a)


def norm(a: PyTree) -> Scalar:
    """‖a‖ over all leaves, also where the squares of their numbers underflow or overflow."""
    scale = largest(a)
    unit = divide(a, scale)
    return scale * jnp.sqrt(dot(unit, unit))


def known(x: PyTree, residual: Scalar) -> PyTree:
    """x, not a number where its residual is not finite: a right-hand side of NaN has no x of 0."""
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(residual), x, jnp.nan), x)


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """a − b, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def negative(a: PyTree) -> PyTree:
    """−a, leaf by leaf."""
    return jax.tree.map(jnp.negative, a)


def axpy(scale: Scalar, x: PyTree, y: PyTree) -> PyTree:
    """scale · x + y, in the leaves' own dtypes."""
    return jax.tree.map(lambda x, y: jnp.asarray(scale, x.dtype) * x + y, x, y)


def relative(residual: PyTree, vector: PyTree) -> Scalar:
    """‖residual‖ / ‖vector‖, and ‖residual‖ itself for a right-hand side of zero."""
    return ratio(norm(residual), norm(vector))


def ratio(part: Scalar, whole: Scalar) -> Scalar:
    """part / whole, and part itself of nothing."""
    return part / jnp.where(whole > 0, whole, 1)


def squared_norm(tree: PyTree) -> Scalar:
    """The sum of squares of every number in a pytree."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(leaf**2), tree))
