"""How far the dual solves have to go: products and the hypergradient's cosine, for any data set.

    python benchmarks/tolerance.py --dataset cifar100 --flip

Both systems of the exact method, α's and β's, are solved by the library's conjugate gradients to
each of `--tolerances`, at a fresh and at a pool-trained network, on a set distilled for
`--distilled` head-only steps. Each row is a relative residual of α with the products it took, each
column one of β with its own; what stands there is the cosine of the hypergradient in the images to
that of both solved to the last of them. Matrix-free, so that size does not matter; where the matrix
can be formed, `conditioning.py` compares preconditioners too.
"""

import argparse

import jax
import jax.numpy as jnp
import jax.random as jr

from _common import (
    adjoint,
    append_lines,
    cosine,
    distill_head_only,
    image_gradient,
    pool_network,
    print_header,
)
from rcig_eqx import Recipe, convnet_for, data
from rcig_eqx.operators import NTK
from rcig_eqx.solvers import ConjugateGradient
from rcig_eqx.solvers._dual import prepare_kernel


@jax.jit(static_argnames="rtol")
def solve(rtol, b, model, X_S):
    """The dual system's solution for one right-hand side, with its statistics."""
    K = NTK(model, X_S, 5e-4 * len(X_S))
    value, stats = prepare_kernel(K, ConjugateGradient(rtol, 1000))[0].solve(b)
    return value, stats["iterations"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--directory", help="looked in first, as by `data.load`")
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--distilled", type=int, default=100)
    parser.add_argument("--pool-steps", type=int, nargs="+", default=[0, 60])
    falling = [1e-1, 3e-2, 1e-2, 1e-3, 1e-4]
    parser.add_argument("--tolerances", type=float, nargs="+", default=falling, help="falling")
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    print_header(f"{args}")
    train = data.load(args.dataset, "train", directory=args.directory)
    make = convnet_for(train.image_shape, train.num_classes, width=args.width)
    recipe = Recipe(fold=False, flip=args.flip)
    given = {"images_per_class": args.images_per_class, "recipe": recipe}
    coreset = distill_head_only(train, make, args.distilled, **given).last
    X_S, y_S = coreset.support()
    assert coreset.preprocess is not None
    batch = train.subset(jr.choice(jr.key(2), len(train), (64,), replace=False).tolist())
    images = jnp.asarray(coreset.preprocess(batch.images))
    targets = jax.nn.one_hot(jnp.asarray(batch.labels), train.num_classes)
    for steps in args.pool_steps:
        model = pool_network(make, X_S, y_S, steps)
        problem = (model, coreset, images, targets)
        reference, rows = None, []
        for rtol in reversed(args.tolerances):
            alpha, products = solve(rtol, y_S, model, X_S)
            b = adjoint(alpha, *problem)
            betas = [solve(u, b, model, X_S) for u in args.tolerances]
            row = [image_gradient(alpha, beta, *problem) for beta, _ in betas]
            reference = row[-1] if reference is None else reference
            counts = [int(count) for _, count in betas]
            rows.append((rtol, int(products), counts, [cosine(g, reference) for g in row]))
        print(f"{y_S.size:,} unknowns; a network after {steps} pool steps")
        print(f"{'α':>8}{'products':>10}" + "".join(f"{f'β {u:g}':>16}" for u in args.tolerances))
        for rtol, products, counts, cosines in reversed(rows):
            cells = (f"{f'{c:.4f} ({n})':>16}" for n, c in zip(counts, cosines, strict=True))
            print(f"{rtol:>8g}{products:>10}" + "".join(cells), flush=True)
            case = {"pool_steps": steps, "alpha": rtol, "alpha_products": products}
            found = {"beta": args.tolerances, "beta_products": counts, "cosines": cosines}
            append_lines(args.out, [case | found])


if __name__ == "__main__":
    main()
