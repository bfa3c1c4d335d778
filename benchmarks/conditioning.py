"""How many products the dual system needs under each preconditioner.

    python benchmarks/conditioning.py --images-per-class 1
    python benchmarks/conditioning.py --images-per-class 10
    python benchmarks/conditioning.py --images-per-class 50 --time

J Jᵀ + λI of a pool-trained network is formed once, on a set distilled for `--distilled` head-only
steps, and conjugate gradients run on it in float64, so that nothing but the conditioning is
compared. Columns: products until the relative residual is below so much, for α (its right-hand
side the labels) and for β (J w for the w of a real outer batch). Last, what a residual is worth:
the cosine of the hypergradient in the images to the exact one, for each pair of stopping rules,
with the head's kernel as preconditioner. With `--time` nothing but how long the class blocks take
to make, and `--products` products, which they are to save.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.linalg

from _common import (
    adjoint,
    compile_and_time,
    cosine,
    distill_head_only,
    image_gradient,
    pool_network,
    print_header,
    setting,
)
from rcig_eqx import convnet_for, data
from rcig_eqx.operators import NTK
from rcig_eqx.operators._gram import tangent_gram

TOLERANCES = (0.3, 1e-1, 1e-2, 1e-3)
CAP = 150
QUANTILES = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1)  # of the spectrum, from the top


def conjugate_gradients(K, b, precondition):
    """Relative residuals and iterates of preconditioned conjugate gradients, one a product."""
    x, r = np.zeros_like(b), b
    z = precondition(r)
    p, rz, found, iterates = z, r @ z, [], []
    for _ in range(CAP):
        Kp = K @ p
        step = rz / (p @ Kp)
        x, r = x + step * p, r - step * Kp
        found.append(np.linalg.norm(r) / np.linalg.norm(b))
        iterates.append(x)
        if found[-1] < min(TOLERANCES):
            break
        z = precondition(r)
        rz, old = r @ z, rz
        p = z + rz / old * p
    return np.array(found), iterates


def inverse(matrix):
    """The exact inverse of a matrix as a preconditioner."""
    factor = scipy.linalg.cho_factor(matrix)
    return lambda r: scipy.linalg.cho_solve(factor, r)


def low_rank(F, l2):
    """The inverse of F Fᵀ + λI."""
    U, s, _ = np.linalg.svd(F, full_matrices=False)

    def apply(r):
        c = U.T @ r
        return U @ (c / (s**2 + l2)) + (r - U @ c) / l2

    return apply


def pivoted_cholesky(K, rank, rng):
    """Randomly pivoted Cholesky: F with F Fᵀ ≈ K, from `rank` of its columns."""
    left, F = K.diagonal().copy(), np.zeros((len(K), 0))
    for _ in range(rank):
        pivot = rng.choice(len(K), p=np.maximum(left, 0) / np.maximum(left, 0).sum())
        column = K[:, pivot] - F @ F[pivot]
        F = np.hstack([F, (column / np.sqrt(column[pivot]))[:, None]])
        left = left - F[:, -1] ** 2
    return F


def deflated(K, base, rank, rng):
    """A randomized Nyström preconditioner on top of another: split M = L Lᵀ, sketch L⁻¹ K L⁻ᵀ."""
    L = np.linalg.cholesky(base)
    solve = lambda x, trans="N": scipy.linalg.solve_triangular(L, x, lower=True, trans=trans)  # noqa: E731
    Q = np.linalg.qr(rng.standard_normal((len(K), rank)))[0]
    Y = solve(K @ solve(Q, "T"))
    shift = 1e-10 * np.linalg.norm(Y)
    C = np.linalg.cholesky(Q.T @ (Y + shift * Q))
    B = scipy.linalg.solve_triangular(C, (Y + shift * Q).T, lower=True).T
    U, s, _ = np.linalg.svd(B, full_matrices=False)
    top = np.maximum(s**2 - shift, 1e-12)

    def apply(r):
        t = solve(r)
        return solve(t + U @ ((top[-1] / top - 1) * (U.T @ t)), "T")

    return apply


def body_models(K, H, n, C, rng):
    """Cheaper stand-ins for the body's part K − H ⊗ I, by name."""
    T = (K - np.kron(H, np.eye(C))).reshape(n, C, n, C)
    sign = rng.choice([-1, 1], C) / np.sqrt(C)
    outputs = np.einsum("icid->cd", T) / n
    images = np.einsum("icjd,cd->ij", T, outputs) / (outputs**2).sum()
    _, U = np.linalg.eigh(outputs)

    def blocks(basis):
        """T with nothing but its diagonal blocks in a basis of the outputs."""
        rotated = np.einsum("icjd,ce,df->iejf", T, basis, basis) * np.eye(C)[None, :, None]
        rotation = np.kron(np.eye(n), basis)
        return rotation @ rotated.reshape(n * C, n * C) @ rotation.T

    return {
        "nothing": 0 * K,
        "one random output": np.kron(np.einsum("icjd,c,d->ij", T, sign, sign), np.eye(C)),
        "mean over outputs": np.kron(np.einsum("icjc->ij", T) / C, np.eye(C)),
        "Kronecker product": np.kron(images, outputs),
        "class blocks": blocks(np.eye(C)),
        "blocks in the outputs' eigenbasis": blocks(U),
    }


def time_class_blocks(model, X, y, l2, products):
    """Print the seconds that the class blocks of J Jᵀ take, and so many products with it."""

    def blocks(model, X):
        def block(output):
            one = eqx.tree_at(lambda m: (m.head.kernel, m.head.bias), model, output)
            return tangent_gram(one, X, one.features(X))

        head = model.head
        return jax.lax.map(block, (head.kernel.T[..., None], head.bias[:, None]))

    def power(model, X):
        operator = NTK(model, X, l2)
        unit = lambda u: u / jnp.linalg.norm(u)  # noqa: E731
        return jax.lax.fori_loop(0, products, lambda _, u: unit(operator.mv(u)), y)

    cases = {"class blocks": (blocks, (model, X)), f"{products} products": (power, (model, X))}
    for name, timing in compile_and_time(cases, repeats=3).items():
        print(f"{name:<16}{timing}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-class", type=int, default=10)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--pool-steps", type=int, default=60)
    parser.add_argument("--distilled", type=int, default=100)
    parser.add_argument("--moved", type=float, default=0.03, help="pixels, in standard deviations")
    parser.add_argument("--time", action="store_true", help="the class blocks, and no more")
    parser.add_argument("--products", type=int, default=15, help="that they are to save")
    args = parser.parse_args()
    print_header(f"{args}")
    fresh, coreset, images, targets = setting(args.images_per_class, 64, width=args.width)
    small = data.load("fashion_mnist_small", "train")
    make = convnet_for(small.image_shape, small.num_classes, width=args.width)
    coreset = distill_head_only(
        small, make, args.distilled, images_per_class=args.images_per_class
    ).last

    def trained(steps, X):
        """The network after so many pool steps on X."""
        return pool_network(lambda _: fresh, X, coreset.support()[1], steps)

    model = trained(args.pool_steps, coreset.support()[0])
    problem = model, coreset, images, targets
    X, y = coreset.support()
    (n, C), rng = y.shape, np.random.default_rng(0)
    l2, identity = 5e-4 * n, np.eye(n * C)
    if args.time:
        return time_class_blocks(model, X, y, l2, args.products)
    gram = jax.jit(lambda model, X: tangent_gram(model, X, model.features(X)))
    K0, h = np.asarray(gram(model, X), np.float64), np.asarray(model.features(X), np.float64)
    K = K0 + l2 * identity

    as_dual = lambda x: jnp.asarray(x.reshape(n, C), jnp.float32)  # noqa: E731
    b_alpha = np.asarray(y, np.float64).ravel()
    alpha = inverse(K)(b_alpha)
    b_beta = np.asarray(adjoint(as_dual(alpha), *problem), np.float64).ravel()

    moved = X + args.moved * jnp.sign(jr.normal(jr.key(5), X.shape))

    def before(steps):
        """The matrix of the same network fewer steps ago, at images moved since."""
        return gram(trained(args.pool_steps - steps, moved), moved) + l2 * identity

    head = np.kron(h @ h.T, np.eye(C)) + l2 * identity
    models = body_models(K0, h @ h.T, n, C, rng)
    cases = {"none": lambda r: r}
    cases |= {f"head + {name}": inverse(head + M) for name, M in models.items()}
    cases |= {f"head, then Nyström of rank {r}": deflated(K, head, r, rng) for r in (20, 50)}
    for rank in (50, 100):
        cases[f"pivoted Cholesky of rank {rank}"] = low_rank(pivoted_cholesky(K0, rank, rng), l2)
    old = {steps: before(steps) for steps in (0, 1, 8)}
    cases |= {f"the matrix {s} pool steps ago, images moved": inverse(M) for s, M in old.items()}

    spectrum = np.linalg.eigvalsh(K0)[::-1] / l2
    print("eigenvalues / λ:", ", ".join(f"{spectrum[int(q * (n * C - 1))]:.3g}" for q in QUANTILES))
    right = {"α": b_alpha, "β": b_beta}
    titles = "".join(f"{f'{name} {t:g}':>9}" for name in right for t in TOLERANCES)
    print(f"{'preconditioner':<46}{titles}")
    for name, precondition in cases.items():
        row = f"{name:<46}"
        for b in right.values():
            found, _ = conjugate_gradients(K, b, precondition)
            reached = [np.flatnonzero(found <= t) for t in TOLERANCES]
            row += "".join(f"{r[0] + 1 if len(r) else f'>{CAP}':>9}" for r in reached)
        print(row, flush=True)
    for steps, M in old.items():  # a dual start instead of a preconditioner
        start = inverse(M)(b_alpha)
        left = np.linalg.norm(b_alpha - K @ start) / np.linalg.norm(b_alpha)
        off = np.linalg.norm(start - alpha) / np.linalg.norm(alpha)
        print(f"α of {steps} pool steps ago as a start: residual {left:.2g}, error {off:.2g}")
    precondition = inverse(head)
    exact = image_gradient(as_dual(alpha), as_dual(inverse(K)(b_beta)), *problem)
    print("\ncosine of the hypergradient, α's residual down and β's across")
    print(" " * 8 + "".join(f"{t:>9g}" for t in TOLERANCES))
    residuals, alphas = conjugate_gradients(K, b_alpha, precondition)
    for t in TOLERANCES:
        found = alphas[np.flatnonzero(residuals <= t)[0]]
        b = np.asarray(adjoint(as_dual(found), *problem), np.float64).ravel()
        left, betas = conjugate_gradients(K, b, precondition)
        row = [betas[np.flatnonzero(left <= u)[0]] for u in TOLERANCES]
        angles = [
            cosine(image_gradient(as_dual(found), as_dual(beta), *problem), exact) for beta in row
        ]
        print(f"{t:>8g}" + "".join(f"{angle:9.4f}" for angle in angles), flush=True)


if __name__ == "__main__":
    main()
