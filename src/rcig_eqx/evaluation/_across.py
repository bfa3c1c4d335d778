"""Several distilled sets by several networks, as one table."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from .._coreset import Coreset
from ..data import AbstractImages, Dataset
from ..data._adapt import Examples
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
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "test accuracy in %, mean ± standard deviation over networks\n" + "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

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
    test: Dataset | AbstractImages | Examples | tuple[Any, Any],
    *,
    key: PRNGKeyArray,
    models: Mapping[str, MakeModel],
    **options: Any,
) -> CrossEvaluation:
    """Evaluate distilled sets with networks they were not distilled with (paper, Table 3).

    **Arguments:**

    - `distilled`: sets by the name of their row; several of one row, as of several seeds, are
      pooled.
    - `test`: as for [`evaluate`][rcig_eqx.evaluate].
    - `key`: every cell has the same fresh seeds.
    - `models`: functions from a key to a network, by the name of their column; give evaluation
      networks ReLU, as `models.network_for("resnet18", …, softplus=None)`.
    - `options`: further arguments of `evaluate`.

    **Returns:** a `CrossEvaluation`. Random real images are left out.
    """
    if not distilled or not models:
        raise ValueError("There is nothing to evaluate: pass one set and one model at least.")
    test = in_memory(test)
    rows = {name: [s] if isinstance(s, Distilled) else list(s) for name, s in distilled.items()}
    if empty := [name for name, sets in rows.items() if not sets]:
        raise ValueError(f"There are no sets in row {empty[0]!r}: leave it out.")

    def cell(sets: list[Distilled], model: MakeModel) -> Evaluation:
        coresets = [s.coreset if isinstance(s, DistillResult) else s for s in sets]
        keys = [jr.fold_in(key, number) for number in range(len(sets))]
        each = zip(coresets, keys, strict=True)
        return pooled(evaluate(s, test, key=k, model=model, **options) for s, k in each)

    return CrossEvaluation(
        {
            name: {column: cell(sets, model) for column, model in models.items()}
            for name, sets in rows.items()
        }
    )


def pooled(evaluations: Iterable[Evaluation]) -> Evaluation:
    """One evaluation of all their networks; baselines, where all have one, likewise."""
    parts = list(evaluations)
    baselines = [part.baseline for part in parts if part.baseline]
    return dataclasses.replace(
        parts[0],
        accuracies=np.concatenate([part.accuracies for part in parts]),
        per_class=np.concatenate([part.per_class for part in parts]),
        baseline=pooled(baselines) if len(baselines) == len(parts) else None,
    )


def percent(evaluation: Evaluation) -> str:
    """Mean ± standard deviation, as tables of this field have it."""
    spread = f" ± {100 * evaluation.std:.1f}" if len(evaluation.accuracies) > 1 else ""
    return f"{100 * evaluation.mean:.1f}{spread}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the head, in Markdown."""
    line = lambda row: "| " + " | ".join(row) + " |"  # noqa: E731
    return "\n".join([line(rows[0]), line(["---"] * len(rows[0])), *map(line, rows[1:])])
