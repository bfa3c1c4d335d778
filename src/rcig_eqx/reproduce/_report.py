"""A table as text, Markdown and JSON, written together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..evaluation._across import markdown_table
from ..io._files import write_atomically
from ._rows import Number


@dataclasses.dataclass(frozen=True)
class Report:
    """One table or figure: what it shows, its rows, and where its numbers come from."""

    name: str  # such as `table2`
    title: str
    head: list[str]
    rows: list[list[str]]
    values: dict[str, Any]  # everything measured, as plain values
    notes: list[str]  # what a reader must know, such as the scale
    pictures: list[str] = dataclasses.field(default_factory=list)  # names of files beside it

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = (
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        return "\n".join([self.title, "", *table, "", *self.notes])

    def to_markdown(self) -> str:
        """The same in Markdown."""
        shown = [f"![{Path(name).stem}]({name})" for name in self.pictures]
        table = markdown_table([self.head, *self.rows])
        parts = [f"# {self.title}", table, *shown, *self.notes]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """`name.txt`, `.md` and `.json` in a folder."""
        content = {
            ".txt": str(self) + "\n",
            ".md": self.to_markdown(),
            ".json": json.dumps(dataclasses.asdict(self), indent=2) + "\n",
        }
        paths = [folder / f"{self.name}{suffix}" for suffix in content]
        for path, text in zip(paths, content.values(), strict=True):
            write_atomically(path, text.encode("utf-8", "backslashreplace"))
        return paths


def of_paper(number: Number | None) -> str:
    """A number of the paper's, in percent, with the decimals it has there."""
    return "" if number is None else f"{number[0]} ± {number[1]}"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}{'s' * (number != 1)}"
