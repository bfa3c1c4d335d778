"""What ends a run by time: a callback."""

import dataclasses

from .._checks import check_number
from ._progress import Progress


@dataclasses.dataclass
class TimeLimit:
    """A callback that ends a run after the step in which its minutes are over.

        distill(train, …, steps=10**7, callbacks=[TimeLimit(minutes=20)])

    Many `steps` leave their number to the time: the default method is then FRePo for 1,000 steps
    and RCIG from there on; no other default depends on `steps`. Minutes are those of
    `result.history["seconds"]`: of the steps, those before the run was resumed included, without
    what comes before the first one, such as preprocessing and compilation.

    - `minutes`: how long the run may take.
    - `reached`: whether the limit has ended a run.

    Raises `ValueError` for minutes that are not positive.
    """

    minutes: int | float
    reached: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        check_number("minutes", self.minutes, lambda minutes: minutes > 0, "positive")

    def __call__(self, progress: Progress) -> bool:
        """Whether the run is to end now."""
        limit = 60 * self.minutes
        progress.ends_at(limit)
        self.reached = progress.seconds >= limit
        return self.reached
