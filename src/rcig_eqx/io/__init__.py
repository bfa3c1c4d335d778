"""Results, exports, pictures and published sets: what is written and read."""

from ._plot import plot_grid as plot_grid, to_pixels as to_pixels
from ._published import (
    LAYOUTS as LAYOUTS,
    AbstractLayout as AbstractLayout,
    StoredSet as StoredSet,
)
from ._published._load import Published as Published, load_published as load_published
from ._published._write import write_published as write_published

__all__ = [
    "LAYOUTS",
    "AbstractLayout",
    "Published",
    "StoredSet",
    "load_published",
    "plot_grid",
    "to_pixels",
    "write_published",
]
