"""Accuracy of what fits into a storage budget: resolution, bits and count on one curve.

    python benchmarks/storage.py --dataset fashion_mnist --factor 2 --bits 8 --out storage.jsonl

Distills as many images per class as the budget holds until `--seconds` have passed, then trains
fresh networks on what is stored. The seconds are those of the whole `distill` call. `--budget` is
in float32 images per class with their labels. Results are appended to `--out`.

    python benchmarks/storage.py --width 128 --start small.safetensors --checkpoints runs/wide

goes on with a saved set, and resumes from `--checkpoints`; the seconds are then the last call's.
"""

import argparse
import time

import jax
import jax.random as jr

from _common import append_lines
from rcig_eqx import (
    PoolSchedule,
    Recipe,
    convnet_for,
    data,
    distill,
    evaluate,
    load_result,
    methods,
    parameterizations as P,
)
from rcig_eqx.parameterizations._budget import bits_of, images_that_fit

LONG = 10**7  # steps: more than any budget has time for


def parameterization(args):
    """The stages that the arguments name; plain images for 32 bits."""
    stages = []
    if args.factor > 1:
        stages.append(P.Downsampled(args.factor))
    if args.cosine < 1:
        stages.append(P.Cosine(args.cosine))
    if args.rank:
        stages.append(P.SharedBasis(args.rank))
    if args.bits < 32:
        stages.append(P.Quantized(args.bits, per=args.per))
    if args.label_bits < 32:
        stages.append(P.LabelBits(args.label_bits, args.top_k))
    return P.compose(*stages) if stages else P.plain()


def run(args, train, stored, count):
    """The set after `--seconds`."""
    model = convnet_for(train.image_shape, train.num_classes, width=args.width)
    began = time.perf_counter()

    def late(progress):
        jax.block_until_ready(progress.state.psi)
        return time.perf_counter() - began >= args.seconds

    pool = PoolSchedule(max_steps=args.pool_steps, batch_size=args.pool_batch)
    return distill(
        train,
        images_per_class=count,
        key=jr.key(args.seed),
        method=methods.METHODS[args.method]() if args.method != "default" else None,
        model=model,
        steps=args.steps,
        initialization=load_result(args.start).coreset if args.start else "real",
        checkpoint_dir=args.checkpoints,
        resume=bool(args.checkpoints),
        batch_size=args.batch_size,
        recipe=Recipe(parameterization=stored, pool=pool),
        callbacks=[late],
        progress=False,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--directory", help="looked in first, as by `data.load`")
    parser.add_argument("--budget", type=int, default=1, help="float32 images per class")
    parser.add_argument("--factor", type=float, default=1)
    parser.add_argument("--cosine", type=float, default=1)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--per", default="channel")
    parser.add_argument("--label-bits", type=int, default=8)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--method", default="frepo_platt")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--pool-batch", type=int)
    parser.add_argument("--pool-steps", type=int, default=100, help="at which a network is renewed")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--evaluation-batch", type=int, default=64)
    parser.add_argument("--evaluation-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=LONG, help="end there if before --seconds")
    parser.add_argument("--start", help="saved result whose set the run starts from")
    parser.add_argument("--evaluate", help="saved result that is evaluated in place of a run")
    parser.add_argument("--checkpoints", help="folder to checkpoint into and to resume from")
    parser.add_argument("--save", help="file to keep the distilled set in")
    parser.add_argument("--out", help="file of JSON lines that the result is added to")
    args = parser.parse_args()
    train, test = (data.load(args.dataset, s, directory=args.directory) for s in ("train", "test"))
    shape, classes = train.image_shape, train.num_classes
    stored = parameterization(args)
    plain = P.plain()
    budget = -(-bits_of(plain, args.budget, shape, classes) // classes)
    count = images_that_fit(stored, budget, shape, classes, at_most=len(train))
    taken = bits_of(stored, count, shape, classes) / classes
    began = time.perf_counter()
    result = load_result(args.evaluate) if args.evaluate else run(args, train, stored, count)
    seconds = time.perf_counter() - began
    if args.save:
        result.save(args.save)
    began = time.perf_counter()
    report = evaluate(
        result,
        test,
        key=jr.key(args.seed + 1000),
        baseline=False,
        num_networks=args.networks,
        batch_size=args.evaluation_batch,
        learning_rate=args.evaluation_rate,
        progress=False,
    )
    unsaid = ("out", "directory", "save", "start", "evaluate", "checkpoints", "steps")
    line = {k: v for k, v in vars(args).items() if k not in unsaid}
    line |= {"started_from_a_set": bool(args.start), "saved": bool(args.evaluate)}
    line |= {"images_per_class": count, "bits_per_class": taken, "budget_bits": budget}
    line |= {"steps": int(result.recipe["steps_done"]), "taken": seconds}
    line |= {"evaluation_seconds": time.perf_counter() - began}
    line |= {"accuracies": report.accuracies.tolist(), "unconverged": report.unconverged}
    append_lines(args.out, [line])
    print(line, flush=True)


if __name__ == "__main__":
    main()
