"""Where progress is shown: a terminal, or a notebook that has widgets for it."""

import importlib.util
from collections.abc import Iterable
from typing import Any, TypeVar

import rich.progress
from rich.console import Console

T = TypeVar("T")


def console(**options: Any) -> Console:
    """A console of rich, which does without widgets where a notebook has none to show."""
    widgets = importlib.util.find_spec("ipywidgets") is not None
    return Console(force_jupyter=None if widgets else False, **options)


def track(items: Iterable[T], what: str, total: int | None = None, *, shown: bool) -> Iterable[T]:
    """The items, with a bar while they are gone through."""
    if not shown:
        return items
    return rich.progress.track(items, what, total, console=console())
