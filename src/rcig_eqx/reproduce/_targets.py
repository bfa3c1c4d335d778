"""The tables and figures by name: their functions, the paper's rows, what each distills."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from .._checks import check_known
from ._figures import (
    ALONG,
    TIMED,
    figure1,
    figure2,
    figure5,
    figure8,
    gallery,
    gallery_ways,
    grid_ways,
    subset_ways,
)
from ._plan import Scale
from ._privacy import chunk_ways, membership
from ._report import Report
from ._rows import ROWS, TABLE_1, TABLE_2, TABLE_3, TABLE_4, Row
from ._tables import (
    METHODS_TAKEN_APART,
    Rows,
    Ways,
    normalized,
    table1,
    table2,
    table3,
    table4,
    table7,
    table8,
)
from ._workshop import Workshop


@dataclasses.dataclass(frozen=True)
class Target:
    """A table or figure of the paper.

    `ways` is what each set of a row is filed under beside the workshop's own method; if `None`
    there is one, by that method and with the row's network.
    """

    make: Callable[[Workshop, Rows, Path], Report]  # pictures are written into the folder
    rows: Sequence[str]  # the paper's, by name
    method: str | None = None  # where that is no choice
    ways: Callable[[Row, Scale], Ways] | None = None
    sets: Literal["seeds", "chunks"] | None = "seeds"  # of the scale, in each of these ways; or one
    steps: int | None = None  # outer iterations, where they are not the scale's
    evaluated: bool = True  # whether networks are trained on the sets and tested
    attacked: bool = False

    def scale(self, scale: Scale) -> Scale:
        """With the target's own steps, if it has some."""
        return scale.changed(steps=self.steps)

    def ways_of(self, row: Row, scale: Scale) -> Ways:
        """What each set of the row is filed under."""
        return self.ways(row, scale) if self.ways else [{}]

    def files(self, row: Row, workshop: Workshop, ways: Ways | None = None) -> list[Path]:
        """Of the row's sets, there or not; of all ways if `None`."""
        workshop = dataclasses.replace(workshop, scale=self.scale(workshop.scale))
        ways = self.ways_of(row, workshop.scale) if ways is None else ways
        seeds = range(getattr(workshop.scale, self.sets) if self.sets else 1)
        each = [workshop.file_of(row, seed, **way) for way in ways for seed in seeds]
        return list(dict.fromkeys(each))  # two methods may come to one


def _table(table: Callable[[Workshop, Rows], Report], rows: Sequence[str], **other) -> Target:
    return Target(lambda workshop, chosen, _: table(workshop, chosen), rows, **other)


def _attacks(name: str, *rows: str) -> Target:
    make = functools.partial(membership, name)
    return Target(make, rows, ways=chunk_ways, sets="chunks", attacked=True)


_GRID = ("cifar100/1", "cifar10/1", "cifar10/10")
_PICTURED = (
    "mnist/1", "mnist/10", "fashion_mnist/1", "fashion_mnist/10", "cifar10/1", "cifar10/10",
    "cifar100/1", "tiny_imagenet/1", "imagewoof/1", "imagenette/1",
)  # fmt: skip

TARGETS: dict[str, Target] = {
    "table1": _table(
        table1,
        list(TABLE_1),
        method="each",
        ways=lambda row, scale: [{"method": method} for method in METHODS_TAKEN_APART],
    ),
    "table2": _table(table2, [row.name for row in TABLE_2]),
    "table3": _table(
        table3, ["cifar10/10"], ways=lambda row, scale: [normalized(kind) for kind in TABLE_3]
    ),
    "table4": _table(table4, [row.name for row in TABLE_4]),
    "table5": _attacks("table5", "mnist/50"),
    "table6": _attacks("table6", "fashion_mnist/50"),
    "table7": _table(table7, list(ROWS), sets=None, evaluated=False),
    "table8": _table(table8, list(ROWS)),
    "figure1": Target(
        figure1, _GRID, "rcig_paper", grid_ways, sets=None, steps=TIMED, evaluated=False
    ),
    "figure2": Target(figure2, _GRID, "rcig_paper", grid_ways),
    "figure3": _attacks("figure3", "mnist/50"),
    "figure5": Target(figure5, ["cifar100/50"], ways=subset_ways),
    "figure6": _attacks("figure6", "fashion_mnist/50"),
    "figure7": _attacks("figure7", "cifar10/50", "cifar100/50"),
    "figure8": Target(
        figure8, ["cifar100/1"], ways=lambda row, scale: [{"variant": ALONG}], sets=None
    ),
    "gallery": Target(gallery, _PICTURED, ways=gallery_ways, sets=None, evaluated=False),
}
"""Every table and figure by name."""


def find_rows(names: Sequence[str]) -> list[Row]:
    """Rows by name. `ValueError` for an unknown one, with the nearest."""
    for name in names:
        check_known("row", name, ROWS)
    return [ROWS[name] for name in names]
