"""The two formulations of the convolution, alone and inside a loop: what `_backend.py` rests on.

    python benchmarks/convolution.py --images 10

Times a forward pass, one product with J Jᵀ in a loop of eight (as in a dual solve), and one
training step in a loop of eight (as in the pool and in evaluation).

    python benchmarks/convolution.py --pieces --images 100

Times the kernel gradient of each of the network's three blocks with so many images taken together:
what `_images_a_piece` in `models/_cpu_convolution.py` rests on.
"""

import argparse
import statistics

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import rcig_eqx.models._conv as conv
import rcig_eqx.models._cpu_convolution as own
from _common import compile_and_time, print_header
from rcig_eqx import convnet_for, linearize


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--pieces", action="store_true")
    args = parser.parse_args()
    print_header(f"Convolution, {args.images} images of 28×28, width {args.width}")
    pieces(args) if args.pieces else formulations(args)


def formulations(args):
    """Whole passes through the network, by either formulation."""
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


def pieces(args):
    """Kernel gradients of single layers, by the number of images taken together."""
    counts = [m for m in (1, 2, 4, 8, 16, 32) if m < args.images]
    library = own._images_a_piece
    head = "".join(f"{m:>8}" for m in counts)
    print(f"{'milliseconds':<24}{head}{'all':>8}{'library':>9}")
    for size, channels in ((32, 1), (16, args.width), (8, 2 * args.width)):
        filters = 2 * channels if channels > 1 else args.width
        x = jr.normal(jr.key(0), (args.images, size, size, channels))
        dy = jr.normal(jr.key(1), (args.images, size, size, filters))

        def gradient(few, x=x, dy=dy, filters=filters):
            def of(x, dy):
                own._images_a_piece = few
                kernel = jnp.zeros((3, 3, x.shape[3], filters))
                _, transpose = jax.vjp(lambda k: own.convolve(x, k, ((1, 1), (1, 1))), kernel)
                return transpose(dy)

            return of, (x, dy)

        ways = {m: gradient(lambda pixels, m=m: m) for m in counts}
        ways |= {"all": gradient(lambda pixels: args.images), "library": gradient(library)}
        timings = compile_and_time(ways, repeats=9)
        row = "".join(f"{1e3 * statistics.median(t.seconds):8.2f}" for t in timings.values())
        chosen = min(library(size * size), args.images)
        print(f"{f'{size}x{size}, {channels} to {filters}':<24}{row}   ({chosen} a piece)")


if __name__ == "__main__":
    main()
