"""Which images make up a batch, by its number alone: endless, without repetition in an epoch."""

import numpy as np
from jaxtyping import Int, Integer


def _permutation(count: int, seed: int, epoch: int, part: int = 0) -> Int[np.ndarray, " n"]:
    """The order of an epoch, of all images or of those of a part."""
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, 0, part], np.uint64)
    bits = np.random.Philox(counter=counter, key=key)
    return np.random.Generator(bits).permutation(count)


class Shuffled:
    """Every epoch goes through all images in a new order; those that fill no batch are dropped."""

    def __init__(self, count: int, batch_size: int, seed: int):
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # epoch, order

    def __call__(self, batch: int) -> Int[np.ndarray, " batch"]:
        epoch, step = divmod(batch, self._count // self._batch_size)
        known, order = self._last
        if known != epoch:
            order = _permutation(self._count, self._seed, epoch)
            self._last = (epoch, order)
        return order[step * self._batch_size : (step + 1) * self._batch_size]


class Balanced:
    """Classes take turns from image to image, and from batch to batch.

    The images of a class come in an order of their own, a new one each time that they are used up.
    A batch has ⌊B/C⌋ or ⌈B/C⌉ of B images of each of C classes; classes without images are left
    out.
    """

    def __init__(self, labels: Integer[np.ndarray, " n"], batch_size: int, seed: int):
        classes = np.unique(labels).tolist()
        self._members = [np.flatnonzero(labels == c) for c in classes]
        self._batch_size, self._seed = batch_size, seed
        self._last: dict[int, tuple[int, np.ndarray]] = {}  # epoch and order of each class

    def __call__(self, batch: int) -> Int[np.ndarray, " batch"]:
        first, count = batch * self._batch_size, len(self._members)
        turns, parts = np.divmod(np.arange(first, first + self._batch_size), count)
        chosen = np.empty(self._batch_size, np.int64)
        for part in np.unique(parts).tolist():
            rows = np.flatnonzero(parts == part)
            chosen[rows] = self._of_class(part, turns[rows])
        return chosen

    def _of_class(self, part: int, turns: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The images of a class at so many turns, which follow one another."""
        members = self._members[part]
        epochs, within = np.divmod(turns, len(members))
        taken = np.empty(len(turns), np.int64)
        for epoch in np.unique(epochs).tolist():
            known, order = self._last.get(part, (-1, members))
            if known != epoch:
                order = members[_permutation(len(members), self._seed, epoch, part + 1)]
                self._last[part] = (epoch, order)
            there = epochs == epoch
            taken[there] = order[within[there]]
        return taken
