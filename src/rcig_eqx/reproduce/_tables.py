"""The paper's tables, each a function from a workshop and rows to a `Report`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from .._describe import versions
from ..evaluation._across import percent
from ..evaluation._train_network import usual_training
from ..models import MakeModel, network_for
from ._plan import Scale, model_of
from ._report import Report, counted, of_paper
from ._rows import RANDOM, TABLE_1, TABLE_3, TABLE_3_FREPO, Row
from ._workshop import Workshop, typical

Rows = Sequence[Row]
Ways = list[dict[str, Any]]  # what `Workshop.place` is given, for each set of a row and a seed
_WHERE = ["Data set", "Img/cls"]


METHODS_TAKEN_APART = (*TABLE_1["mnist/1"], "rcig", "frepo", "frepo_platt", "default")


def table1(workshop: Workshop, rows: Rows) -> Report:
    """The method taken apart: random images, VIG, CIG, RIG, RCIG; here the exact RCIG besides."""
    lines, values = [], {}
    for row in rows:
        for method in METHODS_TAKEN_APART:
            report = workshop.accuracy(row, augment=row.augment, method=method)
            values[f"{row.name} {method}"] = report.to_json()
            paper = TABLE_1.get(row.name, {}).get(method)
            lines.append([*_where(row), method, percent(report), of_paper(paper)])
    head = [*_WHERE, "Method", "Here", "Paper"]
    title = "Table 1: the method taken apart, test accuracy in %"
    return Report("table1", title, head, lines, values, notes(workshop, rows, method="each"))


def accuracies(workshop: Workshop, rows: Rows, *, name: str, title: str) -> Report:
    """Tables 2 and 4: test accuracy, data set by data set."""
    lines, values = [], {}
    for row in rows:
        report = workshop.accuracy(row, augment=row.augment)
        values[row.name] = report.to_json()
        random = workshop.accuracy(row, augment=row.augment, real=True)
        values[f"{row.name} random"] = random.to_json()
        here = [percent(random), of_paper(RANDOM.get(row.name)), percent(report)]
        lines.append([*_where(row), *here, of_paper(row.paper), of_paper(row.frepo)])
    head = [*_WHERE, "Random real", "Paper's random", "Here", "Paper", "Paper's FRePo"]
    more = ["Empty: not in the paper."] if any("" in line for line in lines) else []
    return Report(name, title, head, lines, values, [*more, *notes(workshop, rows)])


_TITLE_4 = "Table 4: test accuracy on ImageNet sets, in %"
table2 = functools.partial(accuracies, name="table2", title="Table 2: test accuracy in %")
table4 = functools.partial(accuracies, name="table4", title=_TITLE_4)


def table3(workshop: Workshop, rows: Rows) -> Report:
    """Sets distilled with one network, evaluated with others."""
    lines, values = [], {}
    for row in rows:
        stated = row.name == "cifar10/10"
        for distilled_with, paper in TABLE_3.items():
            frepo = TABLE_3_FREPO if distilled_with == "batch" else {}
            for column in paper:
                network = evaluation_network(column, row, workshop, distilled_with)
                how = normalized(distilled_with)
                report = workshop.accuracy(row, network=network, **how)
                values[f"{row.name} {distilled_with} {column}"] = report.to_json()
                shown = f"{column} ({network[0]})" if network else column  # as it is filed
                here = [f"convnet, {distilled_with}", shown, percent(report)]
                beside = [of_paper(x.get(column) if stated else None) for x in (paper, frepo)]
                lines.append([*_where(row), *here, *beside])
    head = [*_WHERE, "Distilled with", "Evaluated with", "Here", "Paper", "Paper's FRePo"]
    title = "Table 3: across architectures, test accuracy in %"
    more = [
        "dn: normalized as distilled, the paper's FRePo not; nn: not; bn: by batches. The networks "
        "evaluated have ReLU. The paper's numbers are of cifar10/10."
    ]
    return Report("table3", title, head, lines, values, [*more, *notes(workshop, rows)])


def normalized(kind: str) -> dict[str, Any]:
    """What `Workshop.distilled` is given for a network of Table 3 to distill with."""
    return {} if kind == "none" else {"normalization": kind}


def evaluation_network(
    column: str, row: Row, workshop: Workshop, distilled_with: str
) -> tuple[str, MakeModel] | None:
    """The network that a column of Table 3 stands for, with ReLU, and what it is filed under.

    `None` is the one distilled with, which the other tables evaluate. Two columns that come to the
    same network are the same evaluation.
    """
    name, _, kind = column.partition("-")
    normalization = {"dn": distilled_with, "nn": "none", "bn": "batch", "": "none"}[kind]
    label = f"{name}-{normalization}"
    if name == "conv" and normalization == distilled_with:
        return None
    if name == "conv":
        return label, model_of(row, workshop.scale, normalization, softplus=None)
    known = {"resnet": "resnet18", "vgg": "vgg11", "alexnet": "alexnet"}
    given = {"normalization": normalization, "width": workshop.scale.narrowed(row)}
    shape, classes = row.facts.shape, row.facts.classes
    return label, network_for(known[name], shape, classes, softplus=None, **given)


def table7(workshop: Workshop, rows: Rows) -> Report:
    """Time of an iteration and of all, without compilation."""
    lines, values = [], {}
    for row in rows:
        each = workshop.seconds(row)
        step = typical(each)
        values[row.name] = {"seconds": each, "median": step}
        steps = workshop.scale.steps_of(row)
        hours = [f"{sum(each) / 3600:.2f}", f"{row.seconds * row.steps / 3600:.2f}"]
        lines.append([*_where(row), f"{steps:,}", f"{step:.3f}", f"{row.seconds:.2f}", *hours])
    head = [*_WHERE, "Iterations", "s/iteration", "Paper's", "Hours", "Paper's hours"]
    more = [
        "Of the first seed's run: the median iteration of its latter half, and the sum of all but "
        "the first, with checkpoints, and with compiling once more where it was resumed.",
        run_notes(workshop, rows),
    ]
    return Report("table7", "Table 7: time", head, lines, values, more)


def table8(workshop: Workshop, rows: Rows) -> Report:
    """Evaluation without and with augmentation."""
    lines, values = [], {}
    for row in rows:
        plain, augmented = (workshop.accuracy(row, augment=a) for a in (False, True))
        values[row.name] = {"plain": plain.to_json(), "augmented": augmented.to_json()}
        here = [percent(plain), percent(augmented)]
        lines.append([*_where(row), *here, of_paper(row.plain), of_paper(row.augmented)])
    head = [*_WHERE, "Without", "With", "Paper, without", "Paper, with"]
    title = "Table 8: evaluation without and with augmentation, test accuracy in %"
    return Report("table8", title, head, lines, values, notes(workshop, rows))


def title_of(row: Row) -> str:
    return f"{row.facts.title}, {row.images_per_class} a class"


def _where(row: Row) -> list[str]:
    return [row.facts.title, str(row.images_per_class)]


def notes(workshop: Workshop, rows: Rows, method: str | None = None) -> list[str]:
    """How accuracies were made."""
    scale = workshop.scale
    several = scale.seeds * max(map(scale.networks_of, rows)) > 1
    spread = "; mean ± standard deviation over all of a row's networks" if several else ""

    def trained(row: Row) -> str:
        steps, usual = scale.evaluation_steps_of(row), usual_training(row.images).steps
        return f"{steps:,} steps" + f" of the paper's {usual:,}" * (steps != usual)

    return [
        f"{counted(scale.seeds, 'distilled set')} a row, {networks_of(scale, rows)} on "
        f"each{spread}; all test images there are. Each network trained: "
        f"{_of_each(rows, trained)}.",
        run_notes(workshop, rows, method),
    ]


def networks_of(scale: Scale, rows: Rows, *, attacked: bool = False) -> str:
    return _of_each(rows, lambda row: counted(scale.networks_of(row, attacked=attacked), "network"))


def run_notes(workshop: Workshop, rows: Rows, method: str | None = None) -> str:
    """How sets were made."""
    scale = workshop.scale
    method = method or workshop.method

    def run(row: Row) -> str:
        found = scale.method(row, "default")
        other = f", {found} for default" if "default" in (method, workshop.method) else ""
        text = counted(scale.steps_of(row), "outer iteration")
        return f"{text}, width {scale.width_of(row)}{other * (found != 'default')}"

    of = ", ".join(f"{name} {version}" for name, version in versions().items())
    seen = ", ".join(f"{n:,} of {name}" for name, n in workshop.training_images().items())
    return (
        f"Scale {scale.name}: {_of_each(rows, run)}. Method: {method}, settings: "
        f"{workshop.settings}. Training images: {seen}. {of}."
    )


def _of_each(rows: Rows, what: Callable[[Row], str]) -> str:
    """What is to be said of every row, said once of those that share it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(what(row), []).append(row.name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())
