"""What writes a run's numbers down while it goes on: callbacks, made for a folder, by name."""

import json
from pathlib import Path

from .._registry import Registry
from ._progress import Callback, Progress


def jsonl(folder: Path) -> Callback:
    """A line of JSON per step in `folder/metrics.jsonl`, added to what is there."""
    folder.mkdir(parents=True, exist_ok=True)

    def log(progress: Progress) -> None:
        metrics = {name: float(value) for name, value in progress.metrics.items()}
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": progress.step, **metrics}) + "\n")

    return log


LOGGERS: Registry[Callback] = Registry("loggers", jsonl=jsonl)
"""Loggers by name: functions from a run's folder to a callback."""
