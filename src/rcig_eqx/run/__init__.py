"""What surrounds the algorithm: the loop, its guard, checkpoints, devices, memory, progress."""

from ._devices import make_mesh as make_mesh, place as place, shard_rows as shard_rows
from ._limit import TimeLimit as TimeLimit
from ._loggers import LOGGERS as LOGGERS
from ._progress import Progress as Progress

__all__ = ["LOGGERS", "Progress", "TimeLimit", "make_mesh", "place", "shard_rows"]
