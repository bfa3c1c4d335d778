"""Table 6 of the paper: membership inference against networks trained on a distilled set.

    python benchmarks/privacy.py --out privacy.png \
        --json benchmarks/results/privacy.json

For every chunk of the training set: distill it, train networks on the chunk, on a random subset of
it as large as the distilled set, and on the distilled set, attack them along training as to the
whole chunk, and put the chunks together. Then the likelihood-ratio attack on the first chunk, whose
shadow networks are trained on random halves of it, distilled anew for every one. `--out` names the
picture of the curves; the ROC curves go beside it with the ending `-lira`. `--json` names the
numbers.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.random as jr

from _common import print_header
from rcig_eqx import Coreset, DistillResult, convnet_for, data, distill, privacy
from rcig_eqx.initializers import real_coreset
from rcig_eqx.methods import default_method

# Test accuracy (%), and the AUC of threshold, LR, MLP, RF and KNN (Table 6).
PAPER = {
    "real": ("89.7 ± 0.2", 0.99, 0.99, 0.99, 0.99, 0.98),
    "subset": ("81.1 ± 0.7", 0.53, 0.51, 0.52, 0.52, 0.53),
    "distilled": ("86.7 ± 0.3", 0.50, 0.50, 0.50, 0.50, 0.50),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--directory")
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--chunk-size", type=int, default=1000)
    parser.add_argument("--images-per-class", type=int, default=5)
    parser.add_argument("--distill-steps", type=int, default=200)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--at", type=int, nargs="+", default=[125, 250, 500, 1000, 2000])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--shadows", type=int, default=8, help="0 leaves LiRA out")
    parser.add_argument("--shadow-steps", type=int, default=1000)
    parser.add_argument("--shadow-distill-steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    train = data.load(args.dataset, "train", directory=args.directory)
    test = data.load(args.dataset, "test", directory=args.directory)
    print_header(f"{args.dataset}, {vars(args)}")
    make = {s: convnet_for(train.image_shape, train.num_classes, width=args.width, softplus=s)
            for s in (None, 60.0)}  # fmt: skip
    chunk_key, *keys, lira_key = jr.split(jr.key(args.seed), 2 + args.chunks)
    fixed = {"model": make[60.0], "images_per_class": args.images_per_class, "progress": False}
    method = default_method(args.distill_steps)
    training = {"learning_rate": args.learning_rate, "batch_size": args.batch_size}

    reports = []
    parts = privacy.chunks(train, args.chunk_size, args.chunks, key=chunk_key)
    for part, key in zip(parts, keys, strict=True):
        distill_key, attack_key = jr.split(key)
        result = distill(part, key=distill_key, method=method, steps=args.distill_steps, **fixed)
        print(f"distilled after {time.perf_counter() - began:.0f} s", flush=True)
        report = privacy.membership_inference(
            result, part, test, key=attack_key, model=make[None], at=args.at,
            num_networks=args.networks, progress=False, **training,
        )  # fmt: skip
        print(f"{report}\nafter {time.perf_counter() - began:.0f} s", flush=True)
        reports.append(report)
    report = privacy.join(reports)
    print(report)

    part, ratios = parts[0], {}
    if args.shadows:
        shadow_method = default_method(args.shadow_distill_steps)

        def distill_part(images, labels, key) -> DistillResult:
            half = data.Dataset(images, labels, part.class_names)
            return distill(
                half, key=key, method=shadow_method, steps=args.shadow_distill_steps, **fixed
            )

        preprocess = data.default_preprocess(part.images)

        def subset(images, labels, key) -> Coreset:
            half = data.Dataset(images, labels, part.class_names)
            few = real_coreset(half, args.images_per_class, preprocess, key=key)
            return Coreset(few.images, few.labels, few.log_temperature, preprocess)

        training |= {"steps": args.shadow_steps}
        procedures = {
            "real": (privacy.train_on(make[None], preprocess, **training), True),
            "subset": (privacy.distill_then_train(subset, make[None], **training), False),
            "distilled": (privacy.distill_then_train(distill_part, make[None], **training), False),
        }
        for name, (procedure, jit) in procedures.items():
            shadows = privacy.train_shadows(
                procedure, part.images, part.labels, key=lira_key, num_shadows=args.shadows,
                jit=jit, progress=False,
            )  # fmt: skip
            ratios[name] = privacy.lira(shadows, key=lira_key)
            offline = privacy.lira(shadows, key=lira_key, offline=True)
            print(f"\n{name}\n{ratios[name]}\n{offline}", flush=True)
            print(f"after {time.perf_counter() - began:.0f} s", flush=True)
    print("\n" + table(report, ratios))
    if args.out:
        privacy.save_curves(report, args.out)
        if ratios:
            privacy.save_roc(ratios, args.out.with_stem(args.out.stem + "-lira"))
    if args.json:
        said = {"report": report.to_json(), "lira": {n: r.to_json() for n, r in ratios.items()}}
        args.json.write_text(json.dumps(said) + "\n")
    print(f"{time.perf_counter() - began:.0f} s in all, {jax.devices()[0].device_kind}")


def table(report: privacy.PrivacyReport, ratios: dict[str, privacy.LiraReport]) -> str:
    """Ours beside the paper's, in Markdown."""
    head = ["", "test accuracy (%)", *report.attacks, "LiRA TPR at 1% FPR"]
    rows = [head, ["---"] * len(head)]
    for name, curve in report.curves.items():
        final = 100 * curve.accuracy[:, -1]
        row = [name, f"{final.mean():.1f} ± {final.std(ddof=1) if len(final) > 1 else 0:.1f}"]
        row += [str(curve.mean_auc(attack)[-1]) for attack in report.attacks]
        tpr, error = ratios[name].tpr[0.01] if name in ratios else (float("nan"),) * 2
        rows.append([*row, f"{tpr:.1%} ± {1.96 * error:.1%}" if name in ratios else "–"])
        accuracy, *areas = PAPER[name]
        rows.append(["paper", accuracy, *(f"{area:.2f}" for area in areas), "–"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
