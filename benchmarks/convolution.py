"""The two formulations of the convolution, alone and inside a loop: what `_backend.py` rests on.

    python benchmarks/convolution.py --images 10
    python benchmarks/convolution.py --images 20 --network vgg11 --size 32 --channels 3

Times a forward pass, one product with J Jᵀ in a loop of eight (as in a dual solve), and one
training step in a loop of eight (as in the pool and in evaluation). "XLA's alone" is the library's
own without the matrix product that it takes where windows are larger than the map.

    python benchmarks/convolution.py --pieces --images 100

Times the kernel gradient of each of the network's three blocks with so many images taken together:
what `_images_a_piece` in `models/_cpu_convolution.py` rests on.
"""

import argparse
import functools
import statistics

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import rcig_eqx.models._conv as conv
import rcig_eqx.models._cpu_convolution as own
from _common import compile_and_time, print_header
from rcig_eqx.methods import linearize
from rcig_eqx.models import network_for


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--network", default="convnet")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--pieces", action="store_true")
    args = parser.parse_args()
    print_header(f"Convolution, {args}")
    pieces(args) if args.pieces else formulations(args)


def formulations(args):
    """Whole passes through the network, by either formulation."""
    shape = (args.size, args.size, args.channels)
    model = network_for(args.network, shape, 10, width=args.width)(jr.key(0))
    images = jr.normal(jr.key(1), (args.images, *shape))
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
    library = own._few_large_windows
    for name in ("own", "XLA's alone", "lax"):
        conv.conv_formulation = functools.partial(str, "lax" if name == "lax" else "own")
        own._few_large_windows = library if name == "own" else lambda *_: False
        parts = {"forward": (forward, 1), "product": (products, 8), "training": (training, 8)}
        arguments = (model, images, labels)
        timings = compile_and_time({n: (f, arguments) for n, (f, _) in parts.items()}, repeats=5)
        jax.clear_caches()
        row = [
            f"{1e3 * statistics.median(timings[part].seconds) / count:10.1f}"
            for part, (_, count) in parts.items()
        ]
        print(f"{name:<14}" + "".join(row), flush=True)


def pieces(args):
    """Kernel gradients of single layers, by the number of images taken together."""
    counts = [m for m in (1, 2, 4, 8, 16, 32) if m < args.images]
    library = own._images_a_piece
    head = "".join(f"{m:>8}" for m in counts)
    print(f"{'milliseconds':<24}{head}{'all':>8}{'library':>9}")
    for size, padding, channels in ((28, 3, 1), (16, 1, args.width), (8, 1, 2 * args.width)):
        filters, output = 2 * channels if channels > 1 else args.width, size + 2 * padding - 2
        x = jr.normal(jr.key(0), (args.images, size, size, channels))
        dy = jr.normal(jr.key(1), (args.images, output, output, filters))

        def gradient(few, x=x, dy=dy, filters=filters, edges=((padding, padding),) * 2):
            def of(x, dy):
                own._images_a_piece = few
                kernel = jnp.zeros((3, 3, x.shape[3], filters))
                _, transpose = jax.vjp(lambda k: own.convolve(x, k, edges), kernel)
                return transpose(dy)

            return of, (x, dy)

        ways = {m: gradient(lambda pixels, m=m: m) for m in counts}
        ways |= {"all": gradient(lambda pixels: args.images), "library": gradient(library)}
        timings = compile_and_time(ways, repeats=9)
        row = "".join(f"{1e3 * statistics.median(t.seconds):8.2f}" for t in timings.values())
        chosen = min(library(output * output), args.images)
        print(f"{f'{size}x{size}, {channels} to {filters}':<24}{row}   ({chosen} a piece)")


if __name__ == "__main__":
    main()
