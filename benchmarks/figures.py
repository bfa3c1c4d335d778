"""The figures of the pages of results, drawn from the raw results.

    python benchmarks/figures.py

The distilled set of the gallery is `benchmarks/results/fashion_mnist_small-1ipc.safetensors`, with
its accuracies in the line of `benchmarks/results/gallery.jsonl` that has the command.
"""

import math
import pathlib
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from rcig_eqx import load_result
from rcig_eqx.io._plot import to_pixels
from tables import (
    RESULTS,
    accuracies,
    best_stored,
    lines,
    of_plain,
    of_time,
    one,
    only,
    plain_at_equal_rate,
)

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"
CURVES = {
    "default": ("default (head only, then exact)", "#0b6e4f"),
    "frepo_platt": ("head only", "#1f77b4"),
    "rcig_paper": ("the paper's method", "#d1495b"),
    "frepo": ("FRePo", "#8d6a9f"),
}
BUDGETS = (60, 120, 300, 600, 1200)
SETS = 2  # a point is of so many distilled sets


def accuracy_against_time(path: pathlib.Path) -> None:
    """Mean accuracy and standard deviation over networks against minutes of one core."""
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for method, (label, color) in CURVES.items():
        at = [budget for budget in BUDGETS if len(of_time(method, 1, budget)) == SETS]
        found = [accuracies(of_time(method, 1, budget)) for budget in at]
        minutes = np.array(at) / 60
        mean = np.array([statistics.mean(values) for values in found])
        std = np.array([statistics.stdev(values) for values in found])
        axis.plot(minutes, mean, "o-", color=color, label=label, markersize=4, linewidth=2)
        axis.fill_between(minutes, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    full = one(lines("published"), dataset="fashion_mnist")["accuracy"]["mean"]
    random = statistics.mean(accuracies(of_time("random", 1, 0)))
    for height, text in (
        (full, f"all 60,000 images, width 128 (paper): {full:.1f}%"),
        (random, f"10 random real images: {random:.1f}%"),
    ):
        axis.axhline(height, color="#555555", linestyle="--", linewidth=1.2)
        axis.text(20, height + 0.8, text, ha="right", va="bottom", color="#555555", fontsize=9)
    minutes = [budget // 60 for budget in BUDGETS]
    axis.set(xscale="log", ylim=(40, 100), xlabel="minutes of one CPU core", ylabel="accuracy, %")
    axis.set_xticks(minutes, [str(minute) for minute in minutes])
    axis.set_xticks([], minor=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.legend(loc="center right", bbox_to_anchor=(1.0, 0.26), frameon=False, fontsize=9)
    axis.set_title("Fashion-MNIST, 1 distilled image per class", fontsize=11)
    figure.savefig(path, dpi=130)


def gallery(path: pathlib.Path) -> None:
    """A distilled image of each class below a random real one."""
    result = load_result(RESULTS / "fashion_mnist_small-1ipc.safetensors")
    names = result.class_names
    rows = {
        "random real": to_pixels(result.baseline),
        "distilled": to_pixels(result.coreset, compress=True),
    }
    figure, axes = plt.subplots(2, len(names), figsize=(10, 2.3), layout="constrained")
    for row, (kind, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.squeeze(), cmap="gray")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(kind)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    figure.savefig(path, dpi=130)


def accuracy_against_bits(path: pathlib.Path) -> None:
    """Accuracies on CIFAR-10 that papers report at equal storage, and ours."""
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    published = only(lines("published-storage"), dataset="cifar10")
    each = 32 * (32 * 32 * 3 + 10)  # bits of one float32 image and its labels
    ends = only(published, budget=50)
    lowest = -math.inf  # where the label below stands
    for method in (line["method"] for line in sorted(ends, key=lambda x: x["accuracy"])):
        found = only(published, method=method)
        plain = method == "RCIG"
        style = {"color": "#d1495b", "linewidth": 2} if plain else {"color": "#9aa5b1"}
        at, reached = [each * x["budget"] for x in found], [x["accuracy"] for x in found]
        axis.plot(at, reached, "o-", markersize=4, **style)
        lowest = max(reached[-1], lowest + 1.6)
        label, color = (f"{method}, plain images", "#d1495b") if plain else (method, "#5b6670")
        axis.text(1.1 * at[-1], lowest, label, va="center", color=color, fontsize=8)
    ours = {budget: best_stored("cifar10", budget) for budget in (1, 10)}
    ours = {each * budget: statistics.mean(found) for budget, found in ours.items() if found}
    plain = {1: accuracies(of_plain("cifar10", 1)), 10: plain_at_equal_rate("cifar10", 10)}
    plain = {each * budget: statistics.mean(found) for budget, found in plain.items()}
    axis.plot(list(ours), list(ours.values()), "*-", color="#0b6e4f", markersize=15)
    axis.plot(list(plain), list(plain.values()), "o--", color="#0b6e4f", fillstyle="none")
    for text, (at, height), offset in (
        ("this library", max(ours.items()), (14, 2)),
        ("plain images", min(plain.items()), (14, -8)),
    ):
        axis.annotate(
            f"{text}, width 32,\n10 minutes of one core", (at, height), offset,
            textcoords="offset points", va="center", color="#0b6e4f", fontsize=9,
        )  # fmt: skip
    axis.set(xscale="log", xlim=(0.7 * each, 130 * each), ylim=(38, 84))
    ticks = [each * budget for budget in (1, 10, 50)]
    axis.set_xticks(ticks, [f"{tick:,}\n(as {tick // each} in float32)" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="bits per class", ylabel="accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.set_title("CIFAR-10 in equal storage", fontsize=11)
    figure.savefig(path, dpi=130)


def main() -> None:
    accuracy_against_time(IMAGES / "accuracy-against-time.png")
    gallery(IMAGES / "gallery.png")
    accuracy_against_bits(IMAGES / "accuracy-against-bits.png")


if __name__ == "__main__":
    main()
