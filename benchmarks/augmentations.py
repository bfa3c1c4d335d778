"""A picture of what each augmentation does to an image: a row an operation, a column a draw.

    python benchmarks/augmentations.py --dataset cifar10 --out augmentations.png

The image is preprocessed, changed, and mapped back, as what a network sees in an evaluation is.
"""

import argparse

import jax.numpy as jnp
import jax.random as jr

from _common import print_header
from rcig_eqx import Coreset, data, save_grid
from rcig_eqx._augment import OPERATIONS
from rcig_eqx.evaluation import Augment


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--directory")
    parser.add_argument("--image", type=int, default=12, help="which of the training set")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--out", default="augmentations.png")
    args = parser.parse_args()
    print_header(f"{vars(args)}")
    train = data.load(args.dataset, "train", directory=args.directory)
    preprocess = data.default_preprocess(train.images)
    same = jnp.repeat(preprocess(train.images[[args.image]]), args.draws, axis=0)
    # "color" mixes channels: gray images have none to mix.
    names = ["as it is", *(o for o in OPERATIONS if o != "color" or same.shape[3] == 3)]
    changed = [same]
    for number, operation in enumerate(names[1:]):
        changed.append(Augment(operation)(same, key=jr.key(number)))
    images = jnp.concatenate(changed)
    labels = jnp.zeros((len(images), len(names)))
    shown = Coreset(images, labels, jnp.zeros(()), preprocess)
    print(save_grid(shown, tuple(names), args.out))


if __name__ == "__main__":
    main()
