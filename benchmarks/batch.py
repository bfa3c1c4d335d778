"""What a larger outer batch buys: accuracy and processor seconds of runs that differ in it alone.

    python benchmarks/batch.py --images-per-class 10 --batch-size 64 --steps 300
    python benchmarks/batch.py --images-per-class 10 --batch-size 256 --steps 300
    python benchmarks/batch.py --dataset cifar100 --flip --batch-size 64 --steps 120 --networks 3
    python benchmarks/batch.py --dataset cifar100 --flip --batch-size 512 --steps 120 --networks 3

Distils five sixths of the training images by the head-only method, and tests fresh networks,
trained on the set for 150 pool steps (much quicker than the paper's protocol), on 5,000 of the
rest, or, of a small data set, on the test images. Processor seconds are of the whole `distill`
call, compilation included.
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from _common import print_header
from rcig_eqx import convnet_for, data, distill, methods, platt_loss
from rcig_eqx._pool import PoolSchedule, new_member, train_member
from rcig_eqx.data import apply_in_chunks, hold_out

TESTED = 5000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print_header(f"{args}")
    train, test = (data.load(args.dataset, split) for split in ("train", "test"))
    part, held = hold_out(train, 1 / 6, seed=0)
    order = np.random.default_rng(0).permutation(len(held))[:TESTED]
    held = held.subset(np.sort(order)) if len(order) == TESTED else test
    shape = (train.image_shape, train.num_classes)
    began = time.process_time()
    result = distill(
        part,
        images_per_class=args.images_per_class,
        key=jr.key(args.seed),
        method=methods.frepo(outer_loss=platt_loss),
        model=convnet_for(*shape, width=args.width),
        batch_size=args.batch_size,
        steps=args.steps,
        flip=args.flip,
        progress=False,
    )
    seconds = time.process_time() - began
    assert result.coreset.preprocess is not None
    images = jnp.asarray(apply_in_chunks(result.coreset.preprocess, held.images))
    truth, schedule = jnp.asarray(held.labels), PoolSchedule()
    fresh = convnet_for(*shape, width=args.width, softplus=None)

    @eqx.filter_jit
    def accuracy(key, X_S, y_S):
        model = train_member(new_member(fresh, schedule, key=key), X_S, y_S, 150, schedule).model
        guess = jax.lax.map(lambda x: jnp.argmax(model(x[None])[0]), images, batch_size=500)
        return jnp.mean(guess == truth)

    print(f"{seconds:.0f} processor seconds")
    for name, coreset in (("average", result.coreset), ("last", result.last)):
        keys = [jr.key(900 + i) for i in range(args.networks)]
        found = np.array([float(accuracy(key, *coreset.support())) for key in keys])
        error = found.std(ddof=1) / np.sqrt(len(found))
        print(f"{name}: {found.mean():.2%} ± {error:.2%} (standard error of networks)", flush=True)


if __name__ == "__main__":
    main()
