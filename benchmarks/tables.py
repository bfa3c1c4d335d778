"""The tables of the pages of results, written from the raw results.

    python benchmarks/tables.py             # writes them
    python benchmarks/tables.py --check     # fails if a page differs

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import argparse
import itertools
import json
import math
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

from rcig_eqx.reproduce import ROWS

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("results", "storage")]
NAMES = {
    "default": "default: head only for 1,000 steps, then exact",
    "frepo_platt": "head only (FRePo with `platt_loss`)",
    "rcig_paper": "the paper's RCIG, 20/20 Adam steps",
    "rig": "the paper's RIG",
    "cig": "the paper's CIG",
    "vig": "the paper's VIG",
    "frepo": "FRePo",
    "random": "random real images",
}
Line = dict[str, Any]


def lines(name: str) -> list[Line]:
    """A file of raw results."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def only(found: Iterable[Line], **wanted: Any) -> list[Line]:
    """The lines with these values; `None` is for what a line does not have."""
    return [x for x in found if all(x.get(key) == value for key, value in wanted.items())]


def one(found: Iterable[Line], **wanted: Any) -> Line:
    """The one line with these values."""
    (line,) = only(found, **wanted)
    return line


def accuracies(found: Iterable[Line]) -> list[float]:
    """Test accuracies in percent of the networks of all lines."""
    return [100 * accuracy for line in found for accuracy in line["average"]]


def spread(mean: float, std: float | None) -> str:
    """A mean and a standard deviation, if there is one."""
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def summary(values: list[float]) -> str:
    """Mean and standard deviation of the networks' accuracies."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return spread(statistics.mean(values), std)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"|{'|'.join(row)}|" for row in (head, marks, *rows))


def of_time(method: str, images_per_class: int, budget: int) -> list[Line]:
    """The default settings' lines of a method at a time, on the first machine: a line a set."""
    found = lines("worth" if images_per_class == 1 else "worth-10ipc")
    return only(
        found,
        method=method,
        budget=0 if method == "random" else budget,
        rate=None,
        inner_rate=None,
    )


def methods() -> str:
    """Accuracy of each method at equal time."""
    paper = {
        ("rcig_paper", 1): ROWS["fashion_mnist/1"].plain,
        ("rcig_paper", 10): ROWS["fashion_mnist/10"].plain,
        ("frepo", 1): ROWS["fashion_mnist/1"].frepo,
        ("frepo", 10): ROWS["fashion_mnist/10"].frepo,
    }
    sizes = {1: 600, 10: 2400}
    values = {
        (method, size): accuracies(of_time(method, size, budget))
        for method in NAMES
        for size, budget in sizes.items()
    }
    rows = []
    for method in NAMES:
        row = [NAMES[method]]
        for size in sizes:
            here, sets = values[method, size], len(of_time(method, size, sizes[size]))
            best = max(statistics.mean(values[other, size]) for other in NAMES)
            bold = "**" if statistics.mean(here) == best else ""
            published = paper.get((method, size))
            row += [
                f"{bold}{summary(here)}{bold}",
                f"{len(here)} ({sets})",
                spread(*published) if published else "",
            ]
        rows.append(row)
    here = [100 * accuracy for accuracy in one(lines("full-data"), width=32)["accuracies"]]
    full = [summary(here), str(len(here)), all_of_the_data("fashion_mnist")]
    rows.append(["all 60,000 images", *full, *full])
    head = ["test accuracy, %"]
    for size, budget in sizes.items():
        head += [f"{size} per class, {budget // 60} min", "networks (sets)", "paper, width 128"]
    return markdown(head, rows)


def gallery() -> str:
    """Accuracy of the set of the second figure, and of as many random real images."""
    line = lines("gallery")[0]
    rows = []
    for name, key in {"distilled": "average", "random real": "random_real"}.items():
        found = [100 * accuracy for accuracy in line[key]]
        rows.append([name, summary(found), str(len(found))])
    return markdown(["training images", "accuracy on the bundled test images, %", "networks"], rows)


PLAIN = {  # data set and budget: the file of plain images distilled for ten minutes
    ("fashion_mnist", 1): "worth",
    ("mnist", 1): "worth-mnist",
    ("cifar10", 1): "worth-cifar10",
    ("fashion_mnist", 10): "worth-10ipc",
}


TITLES = {
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


def of_plain(dataset: str, budget: int) -> list[Line]:
    """Plain images distilled for ten minutes: a line a set."""
    return only(lines(PLAIN[dataset, budget]), method="default", budget=600, rate=None)


def stored_as(line: Line) -> str:
    """Resolution and bits of a line of `storage.py`."""
    side = 28 if "mnist" in line["dataset"] else 32
    small = math.ceil(side / line["factor"])
    return f"{small}×{small}, {line['bits']} bits" if line["bits"] < 32 else "float32"


def storage() -> str:
    """Accuracy in one storage budget, of plain images and of more in fewer pixels and bits."""
    found = [
        x | {"dataset": pathlib.Path(x["dataset"]).name}
        for x in lines("storage")
        if x["pool_batch"] == 64
        and x.get("pool_steps", 100) == 100
        and not x.get("started_from_a_set")
    ]
    rows = []
    for dataset, budget in itertools.product(TITLES, (1, 10)):
        here = only(found, dataset=dataset, budget=budget)
        if not here:
            continue
        title = f"{TITLES[dataset]}, {here[0]['budget_bits']:,}"
        kinds: dict[str, list[Line]] = {}
        for line in sorted(here, key=lambda x: (-x["bits"], x["factor"])):
            kinds.setdefault(stored_as(line), []).append(line)
        if "float32" not in kinds and (dataset, budget) in PLAIN:
            plain = of_plain(dataset, budget)
            rows.append([title, "float32 ‡", str(budget), *measured(accuracies(plain), plain)])
        for kind, each in kinds.items():
            values = [100 * accuracy for line in each for accuracy in line["accuracies"]]
            count = str(each[0]["images_per_class"])
            rows.append([title, kind, count, *measured(values, each)])
    head = ["data, bits per class", "stored", "images per class", "accuracy, %", "networks (sets)"]
    return markdown(head, rows)


def measured(values: list[float], sets: list[Line]) -> tuple[str, str]:
    """The accuracy of networks, and how many there are of how many sets."""
    return summary(values), f"{len(values)} ({len(sets)})"


def field() -> str:
    """Accuracies that papers report at equal storage, and ours."""
    published, budgets = lines("published-storage"), (1, 10, 50)
    datasets = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
    rows = []
    for method in dict.fromkeys(line["method"] for line in published):
        each = only(published, method=method)
        first = each[0]
        link = f"[{method}]({first['source']})" if first["source"].startswith("http") else method
        row = [f"{link} ({first['year']})" if first["year"] else link, first["stored"]]
        for dataset in datasets:
            at = {line["budget"]: line["accuracy"] for line in only(each, dataset=dataset)}
            row.append(" / ".join(str(at.get(budget, "–")) for budget in budgets) if at else "–")
        rows.append(row)
    row = ["rcig_eqx †", "fewer pixels and bits"]
    for dataset in datasets:
        at = {budget: best_stored(dataset, budget) for budget in budgets}
        shown = [f"{statistics.mean(values):.1f}" if values else "–" for values in at.values()]
        row.append(" / ".join(shown) if any(at.values()) else "–")
    rows.append(row)
    for dataset in datasets:
        full = one(lines("published"), dataset=dataset)["accuracy"]["mean"]
        datasets[dataset] += f" (all data: {full})"
    return markdown(["method", "stored", *(f"{name}, %" for name in datasets.values())], rows)


def best_stored(dataset: str, budget: int) -> list[float]:
    """The networks' accuracies of the most accurate stored set of a budget."""
    found = [
        [100 * accuracy for accuracy in line["accuracies"]]
        for line in only(lines("storage"), budget=budget)
        if line["bits"] < 32
        and not line.get("started_from_a_set")
        and pathlib.Path(line["dataset"]).name == dataset
    ]
    return max(found, key=statistics.mean, default=[])


def plain_at_equal_rate(dataset: str, budget: int) -> list[float]:
    """The networks' accuracies of plain images, evaluated as what is stored in fewer bits is."""
    found = only(lines("storage"), budget=budget, bits=32)
    (line,) = [x for x in found if pathlib.Path(x["dataset"]).name == dataset]
    return [100 * accuracy for accuracy in line["accuracies"]]


def step() -> str:
    """Time, memory and exactness of a step."""
    names = {
        "exact": "exact, the library's choice of solver",
        "exact, Cholesky": "exact, Cholesky",
        "exact, CG 1e-3": "conjugate gradients to 1e-3",
        "exact, CG 1e-2": "conjugate gradients to 1e-2",
        "Adam 20/20": "the paper's 20/20 Adam steps",
        "head only": "head only",
    }
    found = lines("step")
    rows = []
    for method, name in names.items():
        row = [name]
        for size in (1, 10):
            wanted = {"method": method, "images_per_class": size}
            gradient = one(found, part="hypergradient", **wanted)
            whole = only(found, part="iteration", **wanted)
            row += [
                f"{gradient['seconds']:.3g}",
                f"{whole[0]['seconds']:.3g}" if whole else "",
                f"{gradient['megabytes']:.0f}",
                f"{gradient['cosine']:.4f}",
            ]
        rows.append(row)
    head = ["gradient"]
    for size in (1, 10):
        head += [f"{size} per class: gradient, s", "whole step, s", "MB", "cosine"]
    return markdown(head, rows)


def paper() -> str:
    """The paper's rows: the longest run of each, and the released set."""
    small = lines("paper-small")
    runs = {
        "mnist/1": one(lines("worth-mnist"), budget=1800, rate=None),
        "fashion_mnist/1": one(lines("worth-width128"), method="default", budget=2400),
        "fashion_mnist/10": one(lines("worth-10ipc-width64"), method="default"),
        "cifar10/1": one(lines("worth-cifar10"), method="default", budget=2400),
        "cifar100/1": one(lines("worth-cifar100"), method="rcig", budget=1800),
    }
    rows = []
    for name in ROWS:
        found = only(small, row=name)
        if not found:
            continue
        line, row = found[0], ROWS[name]
        kind = "plain" if line["plain"] else "augmented"
        random = line.get("random_real") or line["random_real_augmented"]
        here, steps, width = line[kind], line["iterations"], line["width"]
        text, count = spread(**here), line["networks"]
        if run := runs.get(name):
            text, count = summary(accuracies([run])), len(run["average"])
            steps, width = run["steps"], run["width"]
        label = f"`{name}`" + (" †" if "cifar" in name else "")
        reached = row.plain if kind == "plain" else row.augmented
        rows.append(
            [
                label,
                str(width),
                f"{steps:,} of {row.steps:,}",
                text,
                str(count),
                spread(**random),
                spread(*reached),
                all_of_the_data(row.dataset),
            ]
        )
    released = one(lines("released"), width=128)
    row = ROWS[released["row"]]
    rows.append(
        [
            f"`{row.name}`, the released set",
            str(released["width"]),
            f"{row.steps:,} of {row.steps:,}",
            spread(**released["accuracy"]),
            "not kept",
            "",
            spread(*row.plain),
            all_of_the_data(row.dataset),
        ]
    )
    head = ["row", "width", "steps", "here, %", "networks", "random real", "paper"]
    return markdown([*head, "all of the data (paper)"], rows)


def all_of_the_data(dataset: str) -> str:
    """The paper's accuracy of networks trained on the whole training set."""
    return spread(**one(lines("published"), dataset=dataset)["accuracy"])


def bilevel() -> str:
    """A hypergradient of a general bilevel problem beside other libraries'."""
    found = lines("bilevel")
    small, large = 99_900, 10_001_134
    rows = []
    for line in only(found, parameters=small):
        low, high = line["quartiles"]
        big = only(found, parameters=large, method=line["method"])
        off = line["difference"]
        rows.append(
            [
                line["method"],
                f"{line['seconds']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{big[0]['seconds']:.1f}" if big else "failed",
                f"{line['vectors']:.1f}",
                f"{off:.1e}" if off else "",
            ]
        )
    head = ["solver", "1e5 parameters: s", "quartiles", "1e7 parameters: s"]
    return markdown([*head, "memory, vectors", "difference"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "gallery": gallery,
    "methods": methods,
    "storage": storage,
    "field": field,
    "step": step,
    "paper": paper,
    "bilevel": bilevel,
}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page with its tables written anew."""
    return MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n\n{m[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    for path in PAGES:
        page = path.read_text()
        wanted = filled(page)
        if not args.check:
            path.write_text(wanted)
        elif page != wanted:
            sys.exit(f"{path} is not what the raw results give: run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
