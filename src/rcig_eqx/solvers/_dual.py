"""The dual system (J Jᵀ + λI) α = b of the linearised inner problem, and two ways to solve it.

The linearised inner problem is one strongly convex quadratic; its solution is kernel ridge
regression with the finite-width empirical NTK J Jᵀ at the network's present parameters, and
θ* = Jᵀ α. The system has one unknown a distilled image and class, whatever the number of
parameters.
"""

import abc
import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import lineax as lx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Scalar

from .._backend import JACOBIAN_NUMBERS, JACOBIAN_ROWS
from .._checks import check_number
from .._linearize import Linearization
from .._ridge import check_dtype, solve_dtype
from .._types import PyTree
from ..models import AbstractNetwork, partition, split_parameters
from ._cg import ConjugateGradient
from ._definite import residual_of


class DualSolution(eqx.Module):
    """A solution of the dual system, with what it cost and how good it is.

    `residual` is ‖b − (J Jᵀ + λI) x‖ / ‖b‖; `num_steps` the iterations and `products` the
    products spent, 0 for a direct solve; `result` lineax's result code, no success for a direct
    solve with a residual above 1, which x = 0 has.
    """

    value: Float[Array, "n classes"]
    num_steps: Int[Array, ""]
    products: Int[Array, ""]
    residual: Scalar
    result: lx.RESULTS

    @property
    def converged(self) -> Bool[Array, ""]:
        """Whether the solver did what was asked of it."""
        return self.result == lx.RESULTS.successful


class DualSystem(eqx.Module):
    """The dual system at one network and one distilled set, ready to be solved repeatedly.

    With weights w it is (J Jᵀ + λ diag(w)⁻¹) α = b, and what is solved the symmetric
    (√w J Jᵀ √w + λI) α/√w = √w b; residuals are those of the latter. `scale` is √w. `rough` is the
    solver for the labels, where it is another one with the same state.
    """

    operator: lx.AbstractLinearOperator
    solver: lx.AbstractLinearSolver
    state: PyTree
    options: dict[str, Any]
    scale: Float[Array, "n classes"] | None = None
    rough: lx.AbstractLinearSolver | None = None

    def solve(
        self,
        b: Float[Array, "n classes"],
        *,
        labels: bool = False,
    ) -> DualSolution:
        """Solve for one right-hand side.

        With `labels` that is y_S, and the solution α, which need not be as close.
        """
        acts_on = self.operator.in_structure()  # a dense matrix acts on flat vectors
        b = b if self.scale is None else self.scale * b
        given = b.reshape(acts_on.shape).astype(acts_on.dtype)
        solution = lx.linear_solve(
            self.operator,
            given,
            self.rough if labels and self.rough is not None else self.solver,
            options=self.options,
            state=self.state,
            throw=False,
        )
        x = solution.value.reshape(b.shape).astype(b.dtype)
        stats, result = solution.stats, solution.result
        steps = jnp.asarray(stats.get("num_steps", 0), jnp.int32)
        products = jnp.asarray(stats.get("products", steps), jnp.int32)
        residual = stats.get("residual")
        if residual is None:
            residual = residual_of(self.operator, solution.value, given).astype(b.dtype)
            result = lx.RESULTS.where(residual <= 1, result, lx.RESULTS.breakdown)
        x = x if self.scale is None else self.scale * x
        return DualSolution(x, steps, products, residual, result)


def dual_operator(
    linearization: Linearization,
    l2: float | Scalar,
    scale: Float[Array, "n classes"] | None = None,
    head_weight: float | Scalar | None = None,
) -> lx.FunctionLinearOperator:
    """J Jᵀ + λI on arrays `[n classes]`: one transpose and one tangent pass a product.

    With `scale` s, s J Jᵀ s + λI; with `head_weight` c, J_B J_Bᵀ + c h hᵀ in the place of J Jᵀ.
    """
    h = linearization.features

    def kernel(u: Array) -> Array:
        whole = linearization.jvp(linearization.vjp(u))
        return whole if head_weight is None else whole + (head_weight - 1) * (h @ (h.T @ u))

    def product(u: Array) -> Array:
        if scale is None:
            return kernel(u) + l2 * u
        return scale * kernel(scale * u) + l2 * u

    return lx.FunctionLinearOperator(
        product, linearization.out_structure, lx.positive_semidefinite_tag
    )


def dual_gram(
    model: AbstractNetwork,
    images: Float[Array, "n h w c"],
    head_weight: float | Scalar | None = None,
) -> Float[Array, "m m"]:
    """J Jᵀ as a matrix `[n·classes, n·classes]`, image after image and class after class within.

    The body's part is formed from its explicit Jacobian, a group of parameters at a time so that
    no more than about 60 million numbers of it are held, and in blocks of rows so that only one
    triangle is computed; the head's part is h hᵀ ⊗ I_C, times `head_weight` if given. Costs
    `classes` transpose passes over the images (more where a large layer is split) and ½ (nC)² P
    multiply-adds for P body parameters.
    """
    body, head = partition(model)
    parameters, static = split_parameters(body)
    leaves, structure = jax.tree.flatten(parameters)
    classes = model.head.kernel.shape[-1]
    per_block = max(1, JACOBIAN_ROWS // classes)

    def rows(image: Array, group: list[Array], put: Callable) -> list[Array]:
        """The Jacobian of one image's outputs in one group, `[classes, numbers]` a leaf."""

        def outputs(group: list[Array]) -> Array:
            parameters = jax.tree.unflatten(structure, put(group))
            return eqx.combine(parameters, static, head)(image[None])[0]

        logits, transpose = jax.vjp(outputs, group)
        (J,) = jax.vmap(transpose)(jnp.eye(classes, dtype=logits.dtype))
        return [leaf.reshape(classes, -1) for leaf in J]

    h = model.features(images)
    K = jnp.kron(h @ h.T, jnp.eye(classes, dtype=h.dtype))
    K = K if head_weight is None else head_weight * K
    for group, put in _parameter_groups(leaves, len(images) * classes):
        # A data dependence, so that no two groups' rows are held at once: XLA's CPU pipeline
        # drops an optimization_barrier before it schedules.
        images = images + 0.0 * K[0, 0]
        blocks = [
            [
                leaf.reshape(-1, leaf.shape[-1])
                for leaf in jax.lax.map(
                    lambda image: rows(image, group, put),  # noqa: B023
                    images[i : i + per_block],
                )
            ]
            for i in range(0, len(images), per_block)
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


def head_preconditioner(
    features: Float[Array, "n features"],
    l2: float | Scalar,
    num_classes: int,
    scale: Float[Array, "n classes"] | None = None,
) -> lx.FunctionLinearOperator:
    """(h hᵀ + λI)⁻¹ ⊗ I_C: the inverse of the dual system with the body left out.

    One n × n Cholesky factorisation of the conjugate kernel, shared by all classes; with `scale`
    s, one of s h hᵀ s + λI a class.
    """
    n = features.shape[0]
    K, ridge = features @ features.T, l2 * jnp.eye(n, dtype=features.dtype)
    structure = jax.ShapeDtypeStruct((n, num_classes), features.dtype)
    if scale is None:
        factor = jsp.linalg.cho_factor(K + ridge)
        inverse = lambda r: jsp.linalg.cho_solve(factor, r)  # noqa: E731
    else:
        one = lambda s: jnp.linalg.cholesky(s[:, None] * K * s[None] + ridge)  # noqa: E731
        factors = jax.vmap(one, 1)(scale)
        solve = jax.vmap(lambda L, r: jsp.linalg.cho_solve((L, True), r), (0, 1), 1)
        inverse = lambda r: solve(factors, r)  # noqa: E731
    return lx.FunctionLinearOperator(inverse, structure, lx.positive_semidefinite_tag)


class AbstractDualSolver(eqx.Module):
    """How to solve the dual system: a value to pass to the method."""

    @abc.abstractmethod
    def prepare(
        self,
        model: AbstractNetwork,
        images: Float[Array, "n h w c"],
        linearization: Linearization,
        l2: float | Scalar,
        weights: Float[Array, "n classes"] | None = None,
        head_weight: float | Scalar | None = None,
    ) -> DualSystem:
        """Whatever both right-hand sides share: a factorisation, a preconditioner.

        `weights` are those of a weighted inner loss, all 1 if `None`. `head_weight` is what the
        head's part of J Jᵀ is multiplied by, 1 if `None`: λ/λ_F where its parameters have another
        L2 weight λ_F than the body's, λ.
        """


class DualCholesky(AbstractDualSolver):
    """Form J Jᵀ + λI and factor it: exact, and the fastest where nC is in the hundreds.

    `dtype` is the precision of the factorisation; `None` is the network's own.
    """

    dtype: DTypeLike | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_dtype(self.dtype)

    def prepare(
        self,
        model: AbstractNetwork,
        images: Float[Array, "n h w c"],
        linearization: Linearization,
        l2: float | Scalar,
        weights: Float[Array, "n classes"] | None = None,
        head_weight: float | Scalar | None = None,
    ) -> DualSystem:
        K = dual_gram(model, images, head_weight)
        scale = None if weights is None else jnp.sqrt(weights)
        if scale is not None:
            K = scale.reshape(-1, 1) * K * scale.reshape(1, -1)
        K = K.astype(solve_dtype(self.dtype, K))
        K = K + jnp.asarray(l2, K.dtype) * jnp.eye(K.shape[0], dtype=K.dtype)
        operator = lx.MatrixLinearOperator(K, lx.positive_semidefinite_tag)
        solver = lx.Cholesky()
        return DualSystem(operator, solver, solver.init(operator, {}), {}, scale)


class DualCG(AbstractDualSolver):
    """Conjugate gradients, preconditioned by the conjugate kernel.

    **Arguments:**

    - `rtol`: stop when the relative residual falls below it. With ten classes and one image of
      each, the hypergradient's cosine to the exact one is 0.996 or more at 1e-2 and 0.99999 at
      1e-3; with more of either it takes a smaller one (`benchmarks/tolerance.py`).
    - `max_steps`: the cap on products; one reached is reported, not raised.
    - `label_rtol`: the same for the solve whose right-hand side is the labels, of the exact method
      or as its `inner` solver; there is none elsewhere. `rtol` if `None`.
    """

    rtol: float = eqx.field(static=True, default=1e-3)
    max_steps: int = eqx.field(static=True, default=100)
    label_rtol: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        ConjugateGradient(self.rtol, self.max_steps)
        check_number(
            "label_rtol",
            self.label_rtol,
            lambda r: r is None or 0 < r < 1,
            "between 0 and 1, or None",
        )

    def prepare(
        self,
        model: AbstractNetwork,
        images: Float[Array, "n h w c"],
        linearization: Linearization,
        l2: float | Scalar,
        weights: Float[Array, "n classes"] | None = None,
        head_weight: float | Scalar | None = None,
    ) -> DualSystem:
        del model, images
        scale = None if weights is None else jnp.sqrt(weights)
        operator = dual_operator(linearization, l2, scale, head_weight)
        solver = ConjugateGradient(self.rtol, self.max_steps)
        classes = operator.in_structure().shape[-1]
        h = linearization.features
        h = h if head_weight is None else jnp.sqrt(head_weight) * h
        preconditioner = head_preconditioner(h, l2, classes, scale)
        options = {"preconditioner": preconditioner}
        state = solver.init(operator, options)
        rough = (
            None if self.label_rtol is None else ConjugateGradient(self.label_rtol, self.max_steps)
        )
        return DualSystem(operator, solver, state, options, scale, rough)


def dual_system(
    solver: AbstractDualSolver, product: Callable[[Array], Array], like: Float[Array, " m"]
) -> DualSystem:
    """A dual system given by its product with flat vectors like `like`, ready to be solved.

    `DualCholesky` forms its matrix column after column.
    """
    if isinstance(solver, DualCholesky):
        K = jax.lax.map(product, jnp.eye(like.size, dtype=like.dtype))
        operator = lx.MatrixLinearOperator(
            K.astype(solve_dtype(solver.dtype, K)), lx.positive_semidefinite_tag
        )
        inner = lx.Cholesky()
    elif isinstance(solver, DualCG):
        structure = jax.ShapeDtypeStruct(like.shape, like.dtype)
        operator = lx.FunctionLinearOperator(product, structure, lx.positive_semidefinite_tag)
        inner = ConjugateGradient(solver.rtol, solver.max_steps)
    else:
        raise ValueError(
            f"solver is {type(solver).__name__}: pass DualCholesky() or DualCG(), which alone "
            "know systems other than a network's."
        )
    return DualSystem(operator, inner, inner.init(operator, {}), {})
