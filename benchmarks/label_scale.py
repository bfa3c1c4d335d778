"""What the scale of the labels is worth to networks trained on a distilled set.

    python benchmarks/label_scale.py

One set, distilled head-only and then exactly, its labels multiplied by so much before fresh
networks are trained on it; the random real images of its start likewise. Outer losses with a
temperature cannot tell these sets apart; see `fold_temperature`.
"""

import argparse

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from _common import append_lines, fresh_accuracies, print_header
from rcig_eqx import Recipe, convnet_for, data, distill, platt_loss
from rcig_eqx.methods import frepo, rcig, staged


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16])
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    print_header(f"{args}")
    train, test = (data.load("fashion_mnist", split) for split in ("train", "test"))
    result = distill(
        train,
        images_per_class=1,
        key=jr.key(3),
        method=staged(frepo(outer_loss=platt_loss), rcig(), args.head_steps),
        model=convnet_for(train.image_shape, train.num_classes, width=args.width),
        steps=args.steps,
        recipe=Recipe(fold=False),
        progress=False,
    )
    print(f"learned temperature {float(jnp.exp(result.coreset.log_temperature)):.2f}")
    for name, coreset in (("distilled", result.coreset), ("random real", result.baseline)):
        for scale in args.scales:
            scaled = eqx.tree_at(lambda c: c.labels, coreset, scale * coreset.labels)
            report = fresh_accuracies(
                scaled, test, width=args.width, networks=args.networks, seed=1
            )
            print(f"{name:<12} × {scale:<5g} {report.mean:.2%} ± {report.std:.2%}", flush=True)
            case = {"set": name, "scale": scale}
            append_lines(args.out, [case | {"accuracies": report.accuracies.tolist()}])


if __name__ == "__main__":
    main()
