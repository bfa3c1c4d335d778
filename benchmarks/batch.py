"""What a larger outer batch buys: accuracy and processor seconds of runs that differ in it alone.

    python benchmarks/batch.py --images-per-class 10 --batch-size 64 --steps 300
    python benchmarks/batch.py --images-per-class 10 --batch-size 256 --steps 300
    python benchmarks/batch.py --dataset cifar100 --flip --batch-size 64 --steps 120 --networks 3
    python benchmarks/batch.py --dataset cifar100 --flip --batch-size 512 --steps 120 --networks 3

Distills five sixths of the training images by the head-only method, and tests fresh networks,
trained on the set for 150 pool steps (much quicker than the paper's protocol), on 5,000 of the
rest, or, of a small data set, on the test images. Processor seconds are of the whole `distill`
call, compilation included.
"""

import argparse
import time

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from _common import append_lines, distill_head_only, pool_network, print_header
from rcig_eqx import Recipe, convnet_for, data
from rcig_eqx.data import apply_in_chunks, hold_out
from rcig_eqx.evaluation._measure import correct

TESTED = 5000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--directory", help="looked in first, as by `data.load`")
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", help="file of JSON lines to append to")
    args = parser.parse_args()
    print_header(f"{args}")
    train, test = (
        data.load(args.dataset, split, directory=args.directory) for split in ("train", "test")
    )
    part, held = hold_out(train, 1 / 6, seed=0)
    order = np.random.default_rng(0).permutation(len(held))[:TESTED]
    held = held.subset(np.sort(order)) if len(order) == TESTED else test
    shape = (train.image_shape, train.num_classes)
    began = time.process_time()
    result = distill_head_only(
        part,
        convnet_for(*shape, width=args.width),
        args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        images_per_class=args.images_per_class,
        recipe=Recipe(flip=args.flip),
    )
    seconds = time.process_time() - began
    assert result.coreset.preprocess is not None
    images = jnp.asarray(apply_in_chunks(result.coreset.preprocess, held.images))
    truth = jnp.asarray(held.labels, jnp.int32)
    fresh = convnet_for(*shape, width=args.width, softplus=None)

    def accuracy(seed, coreset):
        model = pool_network(fresh, *coreset.support(), 150, seed=seed)
        return float(jnp.mean(eqx.filter_jit(correct)(model, images, truth)))

    print(f"{seconds:.0f} processor seconds")
    for name, coreset in (("average", result.coreset), ("last", result.last)):
        found = np.array([accuracy(900 + i, coreset) for i in range(args.networks)])
        error = found.std(ddof=1) / np.sqrt(len(found))
        print(f"{name}: {found.mean():.2%} ± {error:.2%} (standard error of networks)", flush=True)
        case = {"batch": args.batch_size, "steps": args.steps, "processor_seconds": seconds}
        append_lines(args.out, [case | {"set": name, "accuracies": found.tolist()}])


if __name__ == "__main__":
    main()
