"""J Jᵀ of a network as a matrix, from its Jacobian a part at a time."""

import functools
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from .._backend import JACOBIAN_NUMBERS, JACOBIAN_ROWS
from ..models import AbstractNetwork, partition, split_parameters


def tangent_gram(
    model: AbstractNetwork,
    inputs: Float[Array, "n *shape"],
    features: Float[Array, "n features"],
    head_weight: float | Scalar | None = None,
) -> Float[Array, "m m"]:
    """J Jᵀ as a matrix `[n·classes, n·classes]`, input after input and class after class within.

    The body's part is formed from its explicit Jacobian, a group of parameters at a time so that
    no more than about 60 million numbers of it are held, and in blocks of rows so that only one
    triangle is computed; the head's part, of the features h at these inputs, is h hᵀ ⊗ I_C, times
    `head_weight` if given. Costs `classes` transpose passes over the inputs (more where a large
    layer is split) and ½ (nC)² P multiply-adds for P body parameters.
    """
    body, head = partition(model)
    parameters, static = split_parameters(body)
    leaves, structure = jax.tree.flatten(parameters)
    classes = model.head.kernel.shape[-1]
    per_block = max(1, JACOBIAN_ROWS // classes)

    def rows(one: Array, group: list[Array], put: Callable) -> list[Array]:
        """The Jacobian of one input's outputs in one group, `[classes, numbers]` a leaf."""

        def outputs(group: list[Array]) -> Array:
            parameters = jax.tree.unflatten(structure, put(group))
            return eqx.combine(parameters, static, head)(one[None])[0]

        logits, transpose = jax.vjp(outputs, group)
        (J,) = jax.vmap(transpose)(jnp.eye(classes, dtype=logits.dtype))
        return [leaf.reshape(classes, -1) for leaf in J]

    K = jnp.kron(features @ features.T, jnp.eye(classes, dtype=features.dtype))
    K = K if head_weight is None else head_weight * K
    for group, put in _parameter_groups(leaves, len(inputs) * classes):
        # A data dependence, so that no two groups' rows are held at once: XLA's CPU pipeline
        # drops an optimization_barrier before it schedules.
        inputs = inputs + 0.0 * K[0, 0]
        blocks = [
            [
                leaf.reshape(-1, leaf.shape[-1])
                for leaf in jax.lax.map(
                    lambda one: rows(one, group, put),  # noqa: B023
                    inputs[i : i + per_block],
                )
            ]
            for i in range(0, len(inputs), per_block)
        ]
        K = K + _symmetric_product(blocks)
    return K


def _outer(a: Array, b: Array) -> Array:
    return a @ b.T


def _symmetric_product(blocks: list[list[Array]]) -> Array:
    """Σ J Jᵀ over the leaves, from blocks of rows: one triangle computed, the other mirrored."""
    lower = [
        [functools.reduce(jnp.add, map(_outer, J, L)) for L in blocks[: i + 1]]
        for i, J in enumerate(blocks)
    ]
    order = range(len(blocks))
    return jnp.block([[lower[i][j] if j <= i else lower[j][i].T for j in order] for i in order])


def _parameter_groups(
    leaves: list[Array], rows: int
) -> Iterator[tuple[list[Array], Callable[[list[Array]], list[Array]]]]:
    """Parts of the parameters whose Jacobian of `rows` rows fits the budget.

    Yields each part with a function that puts it back among all the leaves. A leaf too large by
    itself is split along its last axis. That axis comes first in a part: a weight's gradient is
    then written as the matrix product makes it, where its transpose would cost a pass through
    the whole Jacobian.
    """
    budget = max(1, JACOBIAN_NUMBERS // rows)
    groups: list[list[tuple[int, Array, int]]] = [[]]
    room = budget
    for index in reversed(range(len(leaves))):  # from the output on: short passes first
        leaf = jnp.moveaxis(jnp.atleast_1d(leaves[index]), -1, 0)
        for part in jnp.array_split(leaf, min(len(leaf), -(-leaf.size // budget))):
            if groups[-1] and part.size > room:
                groups.append([])
                room = budget
            start = sum(len(p) for group in groups for i, p, _ in group if i == index)
            groups[-1].append((index, part, start))
            room -= part.size
    for group in groups:

        def put(values: list[Array], group: list[tuple[int, Array, int]] = group) -> list[Array]:
            whole = list(leaves)
            for (index, part, start), value in zip(group, values, strict=True):
                columns = (..., slice(start, start + len(part)))
                there = jnp.atleast_1d(whole[index]).at[columns].set(jnp.moveaxis(value, 0, -1))
                whole[index] = there.reshape(leaves[index].shape)
            return whole

        yield [part for _, part, _ in group], put
