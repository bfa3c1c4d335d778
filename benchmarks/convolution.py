"""The two formulations of the convolution, alone and inside a loop: what `_backend.py` rests on.

    python benchmarks/convolution.py --images 10

Times a forward pass, one product with J Jᵀ in a loop of eight (as in a dual solve), and one
training step in a loop of eight (as in the pool and in evaluation).
"""

import argparse
import statistics

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import rcig_eqx.models._conv as conv
from _common import compile_and_time, print_header
from rcig_eqx import convnet_for, linearize


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--width", type=int, default=32)
    args = parser.parse_args()
    print_header(f"Convolution, {args.images} images of 28×28, width {args.width}")
    model = convnet_for((28, 28, 1), 10, width=args.width)(jr.key(0))
    images = jr.normal(jr.key(1), (args.images, 28, 28, 1))
    labels = jr.normal(jr.key(2), (args.images, 10))

    def forward(model, images, labels):
        return model(images)

    def products(model, images, labels):
        at = linearize(model, images)
        return jax.lax.fori_loop(0, 8, lambda _, u: 1e-3 * at.jvp(at.vjp(u)), labels)

    def training(model, images, labels):
        loss = lambda m: jnp.mean((m(images) - labels) ** 2)  # noqa: E731
        step = lambda _, m: eqx.apply_updates(  # noqa: E731
            m, jax.tree.map(lambda g: -1e-6 * g, jax.grad(loss)(m))
        )
        return jax.lax.fori_loop(0, 8, step, model)

    print(f"{'milliseconds':<14}{'forward':>10}{'product':>10}{'training':>10}")
    for formulation in ("own", "lax"):
        conv.conv_formulation = lambda f=formulation: f
        parts = {"forward": (forward, 1), "product": (products, 8), "training": (training, 8)}
        arguments = (model, images, labels)
        timings = compile_and_time({n: (f, arguments) for n, (f, _) in parts.items()}, repeats=3)
        jax.clear_caches()
        row = [
            f"{1e3 * statistics.median(timings[name].seconds) / count:10.1f}"
            for name, (_, count) in parts.items()
        ]
        print(f"{formulation:<14}" + "".join(row))


if __name__ == "__main__":
    main()
