"""What the paper's hypergradient costs against its inner and inverse-Hessian steps, and the exact.

    python benchmarks/cost.py --images-per-class 1 --figure cost-1ipc.png
    python benchmarks/cost.py --images-per-class 10 --figure cost-10ipc.png

The shape of the paper's Figure 1: time against one of the two counts, the other at 20; and the
peak of temporary memory likewise. All take turns in one process. The slopes are least squares.
"""

import argparse

import numpy as np

from _common import append_lines, compile_and_time, hypergradient_of, print_header, setting
from rcig_eqx import platt_loss
from rcig_eqx.methods import frepo, rcig, rcig_paper
from rcig_eqx.solvers import Adam


def paper(inner, inverse):
    """The paper's hypergradient with so many steps; rates do not change the time."""
    return hypergradient_of(rcig_paper(inner=Adam(1e-3, inner), solver=Adam(1e-2, inverse)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 5, 10, 20, 30, 50])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--figure")
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    print_header(f"Cost at {args.images_per_class} images per class, width {args.width}")
    problem = setting(args.images_per_class, args.batch_size, width=args.width, pool_steps=60)
    lines = {
        "inner steps": {n: paper(n, 20) for n in args.steps},
        "inverse-Hessian steps": {n: paper(20, n) for n in args.steps},
    }
    cases = {f"{name}: {n}": f for name, row in lines.items() for n, f in row.items()}
    cases |= {
        "exact": hypergradient_of(rcig()),
        "head only": hypergradient_of(frepo(outer_loss=platt_loss)),
    }
    timings = compile_and_time({n: (f, problem) for n, f in cases.items()}, repeats=args.repeats)
    print(f"{'hypergradient':<28}{'seconds':>9}{'quartiles':>16}{'temp MB':>9}")
    for name, timing in timings.items():
        print(f"{name:<28}{timing}", flush=True)
        case = {"images_per_class": args.images_per_class, "method": name}
        append_lines(args.out, [case | timing.row()])
    seconds = {name: float(np.median(t.seconds)) for name, t in timings.items()}
    for name in lines:
        measured = [seconds[f"{name}: {n}"] for n in args.steps]
        slope, start = np.polyfit(args.steps, measured, 1)
        off = np.abs(np.polyval((slope, start), args.steps) / measured - 1).max()
        print(f"{name}: {slope * 1e3:.1f} ms each, at most {off:.0%} off the line")
    if args.figure:
        megabytes = {name: t.temporary_megabytes for name, t in timings.items()}
        draw(lines, args.steps, seconds, megabytes, args.figure)


def draw(lines, steps, seconds, megabytes, path):
    """Time and memory against each count, with the exact and the head-only ones as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, values, label in ((axes[0], seconds, "seconds"), (axes[1], megabytes, "MB")):
        for name in lines:
            axis.plot(steps, [values[f"{name}: {n}"] for n in steps], "o-", label=name)
        for name, style in (("exact", "k-"), ("head only", "k:")):
            axis.axhline(values[name], linewidth=1, linestyle=style[1:], color="k", label=name)
        axis.set(xlabel="steps (the other count is 20)", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
