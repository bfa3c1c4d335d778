"""What a hypergradient costs: beside plain implementations, jaxopt and optimistix, and by solver.

    python benchmarks/bilevel.py cost --out bilevel.jsonl   # 1e3 to 1e7 parameters
    python benchmarks/bilevel.py solvers            # every solver on one problem

`cost`: the inner problem is a three-layer tanh network's ridge-regularized regression on 16
examples, ψ one log penalty a layer; θ is near its minimum, and all take the same θ. Every
iterative solver stops at a relative residual of 1e-3 by its own rule. Columns: median seconds of
the compiled call with quartiles, XLA's temporaries in MB and in vectors of θ's size, the
Hessian-vector products where they are counted, and the relative difference to our gradient.

`solvers`: the linearized network's least squares, 64 examples of three outputs, against the exact
hypergradient in float64.
"""

import argparse
import functools
import importlib.metadata
import statistics

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree

from _common import append_lines, compile_and_time, print_header
from rcig_eqx import hypergradient
from rcig_eqx.bilevel import LeastSquares
from rcig_eqx.solvers import Adam, ConjugateGradient, Dual, Neumann

RTOL, CAP, INPUTS = 1e-3, 200, 32
DENSE = 3_000  # parameters up to which a dense Hessian is formed


def network(parameters: int, *, outputs: int = 1, key):
    """Weights of a network with about so many numbers, and its apply function."""
    b = INPUTS + outputs
    width = max(2, round((-b + (b**2 + 4 * parameters) ** 0.5) / 2))
    sizes = [(INPUTS, width), (width, width), (width, outputs)]
    keys = jr.split(key, 3)
    theta = [jr.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, sizes, strict=True)]

    def apply(theta, X):
        for W in theta[:-1]:
            X = jnp.tanh(X @ W)
        return X @ theta[-1]

    return theta, apply


def problem(parameters: int):
    """Losses, θ and ψ of the cost table."""
    keys = jr.split(jr.key(0), 4)
    theta, apply = network(parameters, key=keys[0])
    X, V = jr.normal(keys[1], (16, INPUTS)), jr.normal(keys[2], (16, INPUTS))
    y = apply(theta, X) + 1e-4 * jr.normal(keys[3], (16, 1))

    def inner(theta, psi):
        squares = jnp.stack([jnp.sum(W**2) for W in theta])
        return 0.5 * jnp.sum((apply(theta, X) - y) ** 2) + 0.5 * jnp.exp(psi) @ squares

    def outer(theta, psi):
        return 0.5 * jnp.sum((apply(theta, V) - 1) ** 2)

    return inner, outer, theta, jnp.full(3, jnp.log(0.1))


def plain_cg(product, b):
    """Textbook conjugate gradients on flat vectors, and its products."""

    def body(carry):
        x, r, p, rr, k = carry
        Ap = product(p)
        a = rr / (p @ Ap)
        x, r = x + a * p, r - a * Ap
        new = r @ r
        return x, r, r + new / rr * p, new, k + 1

    start = (jnp.zeros_like(b), b, b, b @ b, 0)
    going = lambda carry: (carry[3] > RTOL**2 * start[3]) & (carry[4] < CAP)  # noqa: E731
    x, *_, k = jax.lax.while_loop(going, body, start)
    return x, k


def contenders(parameters: int):
    """Functions of (θ, ψ) that give the gradient and the products or −1, by name."""
    inner, outer, theta, psi = problem(parameters)

    def ours(theta, psi):
        solver = ConjugateGradient(RTOL, CAP)
        got = hypergradient(outer, inner, theta, psi, solver=solver)
        return got.gradient, got.stats["products"]

    def plain(theta, psi, solve):
        flat, unravel = ravel_pytree(theta)
        slope = jax.grad(lambda t, psi: inner(unravel(t), psi))
        g = jax.grad(lambda t: outer(unravel(t), psi))(flat)
        v, products = solve(lambda t: slope(t, psi), flat, g)
        return -jax.grad(lambda psi: slope(flat, psi) @ v)(psi), products

    def dense(slope, flat, g):
        return jnp.linalg.solve(jax.jacfwd(slope)(flat), g), flat.size

    def by_products(slope, flat, g):
        return plain_cg(lambda p: jax.jvp(slope, (flat,), (p,))[1], g)

    functions = {
        "rcig_eqx, CG": ours,
        "plain CG": functools.partial(plain, solve=by_products),
    }
    if parameters <= DENSE:
        functions["plain dense"] = functools.partial(plain, solve=dense)
    functions |= jaxopt_functions(inner, outer) | optimistix_functions(inner, outer, parameters)
    return functions, theta, psi


def jaxopt_functions(inner, outer):
    from jaxopt import implicit_diff, linear_solve

    def with_solve(theta, psi, solve):
        g, direct = jax.grad(outer, argnums=(0, 1))(theta, psi)
        (vjp,) = implicit_diff.root_vjp(jax.grad(inner), theta, (psi,), g, solve=solve)
        return direct + vjp, -1

    given = {"tol": RTOL, "maxiter": CAP}
    cg = functools.partial(linear_solve.solve_cg, **given)
    normal = functools.partial(linear_solve.solve_normal_cg, **given)
    return {
        "jaxopt, CG": functools.partial(with_solve, solve=cg),
        "jaxopt, its default (normal CG)": functools.partial(with_solve, solve=normal),
    }


def optimistix_functions(inner, outer, parameters):
    import optimistix as optx

    def with_solver(theta, psi, linear_solver):
        """A descent of one step of length zero: θ itself, with its implicit derivative."""
        descent = optx.GradientDescent(0.0, rtol=1e-3, atol=1e-3)

        def loss(psi):
            found = optx.minimise(
                inner,
                descent,
                theta,
                psi,
                max_steps=1,
                throw=False,
                adjoint=optx.ImplicitAdjoint(linear_solver),
                tags=frozenset({lx.positive_semidefinite_tag}),
            )
            return outer(found.value, psi)

        return jax.grad(loss)(psi), -1

    cg = lx.CG(RTOL, RTOL)  # without a cap: one reached raises, and cannot be told not to
    functions = {"optimistix, lineax CG": functools.partial(with_solver, linear_solver=cg)}
    if parameters <= DENSE:
        default = optx.ImplicitAdjoint().linear_solver
        functions["optimistix, its default (dense)"] = functools.partial(
            with_solver, linear_solver=default
        )
    return functions


def cost(sizes, out):
    others = {name: importlib.metadata.version(name) for name in ("jaxopt", "optimistix")}
    print(others)
    for parameters in sizes:
        functions, theta, psi = contenders(parameters)
        size = sum(W.size for W in theta)
        repeats = 5 if size < 1e6 else 2
        cases = {name: (f, (theta, psi)) for name, f in functions.items()}
        try:
            timings = compile_and_time(cases, repeats=repeats)
        except jax.errors.JaxRuntimeError as error:  # optimistix's solve cannot be told not to
            print(f"\nwithout optimistix, which raised: {str(error)[:3000]}")
            cases = {name: case for name, case in cases.items() if "optimistix" not in name}
            timings = compile_and_time(cases, repeats=repeats)
        print(f"\n{size:,} parameters, {repeats} rounds")
        print(f"{'':<34}{'s':>9}{'quartiles':>16}{'MB':>9}{'vectors':>9}{'products':>9}{'diff':>9}")
        ours = np.asarray(timings["rcig_eqx, CG"].result[0])
        for name, timing in timings.items():
            gradient, products = timing.result
            vectors = timing.temporary_megabytes * 1e6 / 4 / size
            off = np.linalg.norm(gradient - ours) / np.linalg.norm(ours)
            count = str(products) if products >= 0 else "–"
            print(f"{name:<34}{timing}{vectors:9.1f}{count:>9}{off:9.1e}", flush=True)
            row = {"parameters": size, "method": name, "vectors": round(vectors, 1)}
            row |= {"products": int(products) if products >= 0 else None, "difference": float(off)}
            append_lines(out, [row | timing.row()], **others)


def linear_problem(dtype):
    """The linearized network's least squares, its minimum, and ψ: its labels and log λ."""
    keys = jr.split(jr.key(1), 4)
    with jax.enable_x64(False):  # the same numbers in both precisions
        theta, apply = network(4_000, outputs=3, key=keys[0])
        X, V = (jr.normal(k, (64, INPUTS)) for k in keys[1:3])
        y = jr.normal(keys[3], (64, 3))
    theta, X, V, y = jax.tree.map(lambda x: jnp.asarray(x, dtype), (theta, X, V, y))
    psi = {"y": y, "log_l2": jnp.asarray(np.log(0.1), dtype)}
    linear = lambda w, X: jax.jvp(lambda t: apply(t, X), (theta,), (w,))[1]  # noqa: E731
    loss = LeastSquares(lambda w, psi: linear(w, X) - psi["y"], lambda psi: jnp.exp(psi["log_l2"]))
    outer = lambda w, psi: 0.5 * jnp.mean((linear(w, V) - jnp.sin(V[:, :3])) ** 2)  # noqa: E731
    J = jax.jacobian(linear)(jax.tree.map(jnp.zeros_like, theta), X)
    J = np.concatenate([np.asarray(j, np.float64).reshape(192, -1) for j in J], axis=1)
    alpha = np.linalg.solve(J @ J.T + 0.1 * np.eye(192), np.asarray(y, np.float64).ravel())
    w = ravel_pytree(theta)[1](jnp.asarray(J.T @ alpha, dtype))
    return loss, outer, w, psi


def solvers():
    with jax.enable_x64(True):
        loss, outer, w, psi = linear_problem(jnp.float64)
        run = jax.jit(functools.partial(hypergradient, outer, loss, solver=Dual()))
        exact = np.asarray(ravel_pytree(run(w, psi).gradient)[0])
    loss, outer, w, psi = linear_problem(jnp.float32)
    cases = {f"ConjugateGradient({r:g})": ConjugateGradient(r, 500) for r in (1e-1, 1e-2, 1e-4)}
    cases |= {"lineax.CG(1e-2, 1e-2)": lx.CG(1e-2, 1e-2, max_steps=500)}
    cases |= {f"Neumann({k})": Neumann(k) for k in (20, 100, 500)}
    cases |= {
        f"Adam({rate:g}, {k})": Adam(rate, k) for rate, k in ((3e-3, 20), (3e-3, 100), (1e-3, 500))
    }
    cases |= {f"Dual, CG to {r:g}": Dual(ConjugateGradient(r, 500)) for r in (1e-2, 1e-4)}
    cases |= {"Dual, Cholesky": Dual()}
    functions = {
        name: (functools.partial(hypergradient, outer, loss, solver=solver), (w, psi))
        for name, solver in cases.items()
    }
    print(f"{sum(W.size for W in w):,} parameters, 192 residuals")
    print(
        f"{'solver':<26}{'iterations':>11}{'products':>9}{'residual':>10}{'error':>10}{'s':>9}{'MB':>8}"
    )
    for name, timing in compile_and_time(functions, repeats=3).items():
        got = timing.result
        error = np.linalg.norm(np.asarray(ravel_pytree(got.gradient)[0]) - exact)
        error /= np.linalg.norm(exact)
        stats = {k: float(v) for k, v in got.stats.items()}
        print(
            f"{name:<26}{stats['iterations']:11.0f}{stats['products']:9.0f}"
            f"{stats['residual']:10.1e}{error:10.1e}{statistics.median(timing.seconds):9.4f}"
            f"{timing.temporary_megabytes:8.1f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["cost", "solvers"])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--out", help="file of JSON lines that `cost` appends to")
    args = parser.parse_args()
    print_header(f"{args}")
    if args.table == "cost":
        cost([int(size) for size in args.sizes], args.out)
    else:
        solvers()


if __name__ == "__main__":
    main()
