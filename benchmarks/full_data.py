"""The test accuracy that a network reaches on all of the data, to hold a distilled set against.

python benchmarks/full_data.py --width 32 --networks 3 --out benchmarks/results/full-data.jsonl
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from _common import append_lines
from rcig_eqx import convnet_for, data
from rcig_eqx.evaluation import cross_entropy, train_network
from rcig_eqx.evaluation._measure import correct


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--directory", help="looked in first, as by `data.load`")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--out", help="file of JSON lines that the result is added to")
    args = parser.parse_args()
    train, test = (data.load(args.dataset, s, directory=args.directory) for s in ("train", "test"))
    preprocess = data.default_preprocess(train)
    X, X_test = (jnp.asarray(data.apply_in_chunks(preprocess, s.images)) for s in (train, test))
    labels = jax.nn.one_hot(train.labels, train.num_classes)
    truth = jnp.asarray(test.labels, jnp.int32)
    make = convnet_for(train.image_shape, train.num_classes, width=args.width, softplus=None)
    steps = args.epochs * len(train) // args.batch_size
    given = {"steps": steps, "learning_rate": args.learning_rate, "batch_size": args.batch_size}

    @eqx.filter_jit
    def accuracy(key, X, labels, X_test, truth):
        model_key, train_key = jr.split(key)
        model = train_network(
            make(model_key), X, labels, loss=cross_entropy, key=train_key, **given
        )
        return jnp.mean(correct(model, X_test, truth))

    began = time.perf_counter()
    keys = jr.split(jr.key(0), args.networks)
    found = [float(accuracy(key, X, labels, X_test, truth)) for key in keys]
    record = {"dataset": args.dataset, "width": args.width, "epochs": args.epochs, **given}
    record |= {"accuracies": found, "mean": float(np.mean(found))}
    record |= {"std": float(np.std(found, ddof=1)), "seconds": time.perf_counter() - began}
    print(record)
    append_lines(args.out, [record])


if __name__ == "__main__":
    main()
