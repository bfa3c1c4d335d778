"""How far truncated hypergradients are from the exact one, against the number of steps.

    python benchmarks/bias.py --images-per-class 1 --figure bias-1ipc.png
    python benchmarks/bias.py --images-per-class 10 --figure bias-10ipc.png

For each method of the primal route: cosine and norm ratio, in the images, to the exact
hypergradient of the linearized problem, in float32 on real images, with n inner and n
inverse-Hessian Adam steps, all with the paper's outer loss. The learning rates are the library's
own search at 20 steps, or at each n with `--search`, on the same network and batch. Networks:
untrained, and after 60 pool steps. FRePo's gradients, with the paper's loss and with its own, come
first, RCIG with conjugate gradients last; beside each linearized method what an exact v does where
n Adam steps have ended.
"""

import argparse
import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

from _common import append_lines, compile_and_time, cosine, hypergradient_of, print_header, setting
from rcig_eqx import mse_loss, platt_loss
from rcig_eqx.methods import cig, frepo, rcig, rcig_paper, rig, vig
from rcig_eqx.solvers import Adam, ConjugateGradient, Dual

METHODS = {
    "rcig_paper": rcig_paper,
    "cig": functools.partial(cig, outer_loss=platt_loss),
    "rig": rig,
    "vig": functools.partial(vig, outer_loss=platt_loss),
}
HEADS = ("frepo, Platt", "frepo")


def with_steps(method, steps):
    """The method with another number of steps, at the rates it has."""
    inner, inverse = (
        Adam(float(getattr(method, name).learning_rate), steps) for name in ("inner", "solver")
    )
    return dataclasses.replace(method, inner=inner, solver=inverse)


def tuned(name, steps, problem):
    """The method with the rates that the library's search finds at so many steps."""
    searched = METHODS[name](inner=Adam(steps=steps), solver=Adam(steps=steps))
    found = eqx.filter_jit(searched.tune)(*problem)
    inner, inverse = found.inner.learning_rate, found.solver.learning_rate
    print(f"{name} at {steps} steps: inner rate {inner:.2g}, inverse-Hessian rate {inverse:.2g}")
    return found


def measure(problem, methods, steps, time, search):
    """Rows `(method, n, cosine, norm ratio, seconds)` at one network."""
    hypergradient = hypergradient_of(rcig(solver=lx.Cholesky()))
    exact = jax.jit(hypergradient)(*problem).gradient.images
    size = float(jnp.linalg.norm(exact.ravel()))

    def row(name, n, function):
        timing = compile_and_time({name: (function, problem)}, repeats=3 if time else 0)[name]
        images = timing.result.gradient.images
        ratio = float(jnp.linalg.norm(images.ravel())) / size or float("nan")
        seconds = sorted(timing.seconds)[1] if time else float("nan")
        angle = cosine(images, exact)
        print(f"{name:<22}{n:>5}{angle:11.5f}{ratio:11.4f}{seconds:9.3f}", flush=True)
        return name, n, angle, ratio, seconds if time else None

    print(f"{'method':<22}{'n':>5}{'cosine':>11}{'norm':>11}{'seconds':>9}")
    row("exact", "", hypergradient)
    losses = zip(HEADS, (platt_loss, mse_loss), strict=True)
    rows = [row(name, 0, hypergradient_of(frepo(outer_loss=loss))) for name, loss in losses]
    for name in methods:
        found = None if search else tuned(name, 20, problem)
        for n in steps:
            method = found or tuned(name, max(n, 2), problem)  # one step shows no trend
            truncated = with_steps(method, n)
            rows.append(row(name, n, hypergradient_of(truncated)))
            if n and method.linearized:
                exact_v = dataclasses.replace(truncated, solver=Dual())
                rows.append(row(f"{name}, exact v", n, hypergradient_of(exact_v)))
    for n in steps if "rcig_paper" in methods else ():
        if n:
            cg = ConjugateGradient(1e-7, n)
            conjugate = hypergradient_of(rcig_paper(inner=cg, solver=cg))
            rows.append(row("rcig_paper, CG", n, conjugate))
    return rows


def draw(found, path):
    """Cosine and norm ratio against n, a column a network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    size = (4.5 * len(found), 6)
    figure, axes = plt.subplots(2, len(found), figsize=size, sharex=True, sharey="row")
    for column, (title, rows) in zip(axes.T, found.items(), strict=True):
        for name in (method for method in METHODS if method in {row[0] for row in rows}):
            _, n, angles, ratios, _ = zip(*(r for r in rows if r[0] == name), strict=True)
            column[0].plot(n, angles, "o-", label=name)
            column[1].plot(n, ratios, "o-", label=name)
        for name, dashes in zip(HEADS, ("--", ":"), strict=True):
            ((angle, ratio),) = [row[2:4] for row in rows if row[0] == name]
            column[0].axhline(angle, color="black", linestyle=dashes, label=name)
            column[1].axhline(ratio, color="black", linestyle=dashes)
        column[0].set(title=title, ylim=(-0.2, 1.05))
        column[1].set(xscale="symlog", yscale="log", xlabel="inner and inverse-Hessian steps")
        steps = sorted({row[1] for row in rows})
        column[1].set_xticks(steps, map(str, steps))
        column[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        column[1].yaxis.set_major_formatter("{x:g}")
        column[1].minorticks_off()
        column[1].axhline(1, color="gray", linewidth=0.5)
        for axis in column:
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("cosine to the exact hypergradient")
    axes[1, 0].set_ylabel("norm relative to it")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=6, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 2, 5, 10, 20, 50, 200])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--search", action="store_true", help="rates at each number of steps")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--figure")
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    print_header(f"Bias at {args.images_per_class} images per class, width {args.width}")
    found = {}
    for title, pool_steps in (("untrained", 0), ("after 60 pool steps", 60)):
        print(f"\n## network {title}")
        problem = setting(
            args.images_per_class, args.batch_size, width=args.width, pool_steps=pool_steps
        )
        rows = measure(problem, args.methods, args.steps, not args.no_time, args.search)
        found[title] = rows
        names = ("method", "steps", "cosine", "norm_ratio", "seconds")
        where = {"images_per_class": args.images_per_class, "network": title}
        append_lines(args.out, [where | dict(zip(names, row, strict=True)) for row in rows])
    if args.figure:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
