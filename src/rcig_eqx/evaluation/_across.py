"""Several distilled sets by several networks, as one table."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .._coreset import Coreset
from ..data import AbstractImages, Dataset
from ..data._adapt import Foreign
from ..io._result import DistillResult
from ..models import MakeModel
from ._evaluate import evaluate, in_memory
from ._report import Evaluation

Distilled = DistillResult | Coreset


@dataclasses.dataclass(frozen=True)
class CrossEvaluation:
    """Accuracies of every row's sets, by every column's networks.

    `cells[row][column]` is an `Evaluation`; of a row of several sets it holds the networks of all,
    one set after another.
    """

    cells: dict[str, dict[str, Evaluation]]

    @property
    def columns(self) -> list[str]:
        """The names of the networks."""
        return list(next(iter(self.cells.values())))

    def __str__(self) -> str:
        rows = self._texts()
        counts = {len(c.accuracies) for row in self.cells.values() for c in row.values()}
        over = f"{counts.pop()} networks" if len(counts) == 1 else "the networks of each cell"
        head = f"test accuracy in %, mean ± standard deviation over {over}"
        return "\n".join([head, *text_table(rows)])

    def to_markdown(self) -> str:
        """The table in Markdown: percentages, mean ± standard deviation over all networks."""
        return markdown_table(self._texts())

    def to_json(self) -> dict[str, Any]:
        """Everything in it as plain values."""
        return {
            row: {column: cell.to_json() for column, cell in cells.items()}
            for row, cells in self.cells.items()
        }

    def _texts(self) -> list[list[str]]:
        head = ["", *self.columns]
        return [head, *([row, *map(percent, c.values())] for row, c in self.cells.items())]


def cross_evaluate(
    distilled: Mapping[str, Distilled | Sequence[Distilled]],
    test: Dataset | AbstractImages | Foreign | tuple[Any, Any],
    *,
    key: PRNGKeyArray,
    models: Mapping[str, MakeModel] | None = None,
    **options: Any,
) -> CrossEvaluation:
    """Evaluate distilled sets with networks they were not distilled with (paper, Table 3).

    **Arguments:**

    - `distilled`: sets by the name of their row; several of one row, as of several seeds, are
      pooled, and the interval of a cell is over the means of the sets.
    - `test`: as for [`evaluate`][rcig_eqx.evaluate].
    - `key`: every cell has the same fresh seeds.
    - `models`: functions from a key to a network, by the name of their column; give evaluation
      networks ReLU, as `models.network_for("resnet18", …, softplus=None)`. If `None`, one column
      with the network that each set was distilled with, as for `evaluate`.
    - `options`: further arguments of `evaluate`.

    **Returns:** a `CrossEvaluation`. Random real images are left out, unless `baseline=` asks for
    them.
    """
    columns = {"as distilled": None} if models is None else models
    for name, value in (("distilled", distilled), ("models", columns)):
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{name} is a {type(value).__name__}: pass a mapping from a name to each of them."
            )
    if not distilled or not columns:
        raise ValueError("There is nothing to evaluate: pass one set and one model at least.")
    test = in_memory(test)
    rows = {name: [s] if isinstance(s, Distilled) else list(s) for name, s in distilled.items()}
    if empty := [name for name, sets in rows.items() if not sets]:
        raise ValueError(f"There are no sets in row {empty[0]!r}: leave it out.")

    options = {"baseline": False} | options

    def cell(sets: list[Distilled], model: MakeModel | None) -> Evaluation:
        keys = [jr.fold_in(key, number) for number in range(len(sets))]
        each = zip(sets, keys, strict=True)
        return pooled(evaluate(s, test, key=k, model=model, **options) for s, k in each)

    return CrossEvaluation(
        {
            name: {column: cell(sets, model) for column, model in columns.items()}
            for name, sets in rows.items()
        }
    )


def pooled(evaluations: Iterable[Evaluation]) -> Evaluation:
    """One evaluation of all their networks, each part being a set or several of its own;
    baselines, where all have one, likewise. `ValueError` for parts of other classes."""
    parts = list(evaluations)
    names = parts[0].class_names
    if any(set(part.class_names) != set(names) for part in parts):
        raise ValueError("The sets have other classes than each other: pool sets of the same ones.")
    baselines = [part.baseline for part in parts if part.baseline]

    def joined(field: str) -> Any:
        values = [getattr(part, field) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    numbers = [np.zeros(len(p.accuracies), int) if p.sets is None else p.sets for p in parts]
    first = np.cumsum([0, *(n.max() + 1 for n in numbers)])[:-1]
    columns = [[part.class_names.index(name) for name in names] for part in parts]
    each = zip(parts, columns, strict=True)
    counts = [p.confusion[np.ix_(c, c)] for p, c in each if p.confusion is not None]
    return dataclasses.replace(
        parts[0],
        accuracies=joined("accuracies"),
        per_class=np.concatenate([p.per_class[:, c] for p, c in zip(parts, columns, strict=True)]),
        baseline=pooled(baselines) if len(baselines) == len(parts) else None,
        sets=np.concatenate([n + start for n, start in zip(numbers, first, strict=True)]),
        losses=joined("losses"),
        converged=joined("converged"),
        metrics={
            name: np.concatenate([part.metrics[name] for part in parts])
            for name in parts[0].metrics
            if all(name in part.metrics for part in parts)
        },
        confusion=np.sum(counts, 0) if len(counts) == len(parts) else None,
    )


def percent(evaluation: Evaluation) -> str:
    """Mean ± standard deviation, as tables of this field have it."""
    spread = f" ± {100 * evaluation.std:.1f}" if len(evaluation.accuracies) > 1 else ""
    return f"{100 * evaluation.mean:.1f}{spread}"


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines, in columns of the same width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the head, in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
