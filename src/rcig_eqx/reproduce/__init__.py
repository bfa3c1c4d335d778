"""The paper's tables and figures, run again: rows as values, and one function for each."""

from ._plan import METHODS as METHODS, SCALES as SCALES, SETTINGS as SETTINGS, Scale as Scale
from ._report import Report as Report
from ._rows import DATASETS as DATASETS, ROWS as ROWS, DatasetFacts as DatasetFacts, Row as Row
from ._targets import TARGETS as TARGETS, Target as Target
from ._workshop import Workshop as Workshop, dry_run as dry_run

__all__ = [
    "ROWS",
    "Workshop",
]
