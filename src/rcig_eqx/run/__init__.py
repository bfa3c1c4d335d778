"""What surrounds the algorithm: the loop, its guard, checkpoints, devices, memory, progress."""

from . import loggers as loggers
from ._devices import make_mesh as make_mesh, place as place, shard_rows as shard_rows
from ._limit import TimeLimit as TimeLimit
from ._progress import Progress as Progress
from .loggers import LOGGERS as LOGGERS

__all__ = ["LOGGERS", "Progress", "TimeLimit", "loggers", "make_mesh", "place", "shard_rows"]
