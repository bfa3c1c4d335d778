"""Results, exports and pictures: what is written and read."""

from ._plot import plot_grid as plot_grid, to_pixels as to_pixels

__all__ = ["plot_grid", "to_pixels"]
