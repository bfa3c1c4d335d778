"""The lowest frequencies."""

import math

from .._checks import check_number
from ._compose import AbstractStage, Extra
from ._downsampled import along_sides, check_images
from ._read import cosine


class Cosine(AbstractStage):
    """The lowest coefficients of an orthonormal discrete cosine transform (DCT-II) of images.

    - `keep`: the share of the frequencies of each side that is kept, in (0, 1], rounded up.
    """

    keep: float | int = 0.5

    def __check_init__(self) -> None:
        check_number("keep", self.keep, lambda k: 0 < k <= 1, "in (0, 1]")

    def forward(self, x):
        check_images(x, self)
        h, w = x.shape[1:3]
        bases = (cosine(side, math.ceil(side * self.keep)).T for side in (h, w))
        return along_sides(x, *bases), Extra({}, x.shape[1:])

    def backward(self, x, extra):
        (h, w, _), (_, rows, columns, _) = extra.shape, x.shape
        return along_sides(x, cosine(h, rows), cosine(w, columns))

    def steps(self, shape, extra, name):
        return [{"stage": "cosine", "size": list(extra.shape[:2])}]
