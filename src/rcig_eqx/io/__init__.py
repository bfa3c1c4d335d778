"""Results, exports and pictures: what is written and read."""

from ._plot import to_pixels as to_pixels

__all__ = ["to_pixels"]
