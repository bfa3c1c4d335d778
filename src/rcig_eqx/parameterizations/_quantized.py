"""Images in integers of a few bits."""

from typing import ClassVar

from .._checks import ArgumentError
from ._compose import AbstractStage, Extra
from ._levels import PER, check_bits, packed, place, rounded, starting_range, stored_range


class Quantized(AbstractStage):
    """Numbers rounded to evenly spaced levels between two learned ends.

    The derivative is that of the numbers before rounding, within half a step of the levels, and
    zero beyond. The ends are learned with the rounding held fixed (Esser et al., 2020).

    - `bits`: of each number, 1 to 8.
    - `per`: which numbers share a range, of two float32. `"channel"`: those of one channel, the
      last axis. `"number"`: those at one place of every input, such as one frequency. `"set"`: all.
    """

    rounds: ClassVar[bool] = True

    bits_each: int
    per: str

    def __init__(self, bits: int = 8, per: str = "channel"):
        self.bits_each, self.per = check_bits(bits), per
        if per not in PER:
            raise ArgumentError("per", f"is {per!r}: choose one of {', '.join(PER)}.")

    def forward(self, x):
        return x, Extra({"range": starting_range(x, self.bits_each, self.per)})

    def backward(self, x, extra):
        return rounded(x, extra.arrays["range"], self.bits_each)

    def numbers(self, shape, name):
        spec = {"array": "images", "shape": list(shape), "bits": self.bits_each}
        return spec | {"range": f"{name}.range"}

    def arrays(self, x, extra, name):
        bits, span = self.bits_each, extra.arrays["range"]
        return {
            "images": packed(place(x, span, bits)[0], bits),
            f"{name}.range": stored_range(span),
        }
