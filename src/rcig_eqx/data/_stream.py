"""Endless batches, reshuffled every epoch, as a grain iterator whose state can be saved."""

import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import absl.flags
import grain
import numpy as np
from grain.multiprocessing import MultiprocessingOptions
from jaxtyping import Shaped

from .._checks import ArgumentError
from ._adapt import Foreign, adapted
from ._arrays import array_of, images_of, numbered, plain_array
from ._dataset import DataError, Dataset
from ._images import AbstractImages
from ._order import Balanced, Shuffled

# Whole batches are read ahead, so few are enough to hide the decoding.
_FROM_DISK = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
_IN_MEMORY = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

Batch = tuple[Shaped[np.ndarray, "batch *shape"], Shaped[np.ndarray, "batch ..."]]


def stream(
    train: Dataset | AbstractImages | grain.MapDataset[Any] | Foreign | tuple[Any, Any],
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rows: slice | None = None,
    balanced: bool = False,
) -> grain.DatasetIterator[Any]:
    """Batches `(images [batch h w c], labels [batch ...])` of numpy arrays, without end.

    **Arguments:**

    - `train`: a `Dataset` or a pair of arrays, [n *shape] and [n ...], in memory or memory-mapped;
        an `ImageFolder`, `Records` or other set on disk; a data set of Hugging Face, TFDS or
        PyTorch; or a finite `grain.MapDataset` of `(image, label)` pairs or of dictionaries with
        "image" and "label".
    - `batch_size`: images a batch, no more than there are.
    - `seed`: in `range(2**32)`; the same seed gives the same batches.
    - `start`: how many batches to leave out: what comes is what would have come after so many.
    - `workers`: processes that read a set on disk ahead, instead of threads; they change nothing
        about the batches. Sets in memory have no use for them.
    - `rows`: which rows of every batch to read, all if `None`. Processes that take
        `slice(0, 32)` and `slice(32, 64)` together have the batches of 64 that one would have;
        an image of a set on disk is decoded only where it is asked for.
    - `balanced`: take as many images of each class: they take turns, and those of a class are gone
        through in a new order each time that they are used up. Labels must be class numbers, and
        `train` no `grain.MapDataset`.

    Every epoch goes through the images in a new order, each at most once; those left over when
    they do not fill a batch are dropped from that epoch. The same set in memory and on disk, in the
    same order, gives the same batches; a `grain.MapDataset` is shuffled by grain's own rule. Labels
    that are text are numbered by name. Raises `ValueError` for sizes that do not fit.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: choose it in range(2**32).")
    train = adapted(train)
    if isinstance(train, grain.MapDataset):
        if balanced:
            raise ArgumentError(
                "balanced", "needs labels known before the run: pass a Dataset or a set on disk."
            )
        if len(train) == sys.maxsize:
            raise ValueError("the grain dataset has no end: pass it without repeat().")
        _check_sizes(len(train), batch_size, rows)
        shuffled = train.seed(seed).map(_as_pair).shuffle()
        if rows is not None:
            shuffled, batch_size = _Rows(shuffled, batch_size, rows), rows.stop - rows.start
        batches = shuffled.batch(batch_size, drop_remainder=True).repeat()
        return _ahead(batches[start:], workers)
    if isinstance(train, AbstractImages):
        _check_sizes(len(train), batch_size, rows)
        order = _order(train.labels, batch_size, seed, balanced)
        source = _Batches(train.gather, order, rows)
        return _ahead(grain.MapDataset.source(source)[start:], workers)
    if isinstance(train, Dataset):
        train = (train.images, train.labels)
    if not isinstance(train, tuple):
        raise ValueError(
            f"{type(train).__name__} cannot be shuffled anew every epoch: pass a Dataset, "
            "(images, labels), an ImageFolder, Records or a grain.MapDataset."
        )
    # Views of the plain class: a gather from it gives plain arrays, memory-mapped or not.
    images, labels = (
        np.asarray(plain_array(np.asanyarray(x), "train"))
        for x in (images_of(train[0]), array_of(train[1]))
    )
    labels, _ = numbered(labels, None)
    if len(images) != len(labels):
        raise ValueError(f"there are {len(images)} images but {len(labels)} labels.")
    _check_sizes(len(images), batch_size, rows)

    def gather(chosen: np.ndarray) -> Batch:
        return images.take(chosen, axis=0), labels.take(chosen, axis=0)

    source = _Batches(gather, _order(labels, batch_size, seed, balanced), rows)
    return iter(grain.MapDataset.source(source)[start:].to_iter_dataset(_IN_MEMORY))


def _ahead(batches: grain.MapDataset[Any], workers: int) -> grain.DatasetIterator[Any]:
    """Batches of a set on disk, read ahead by threads, or by processes with threads each."""
    ahead = batches.to_iter_dataset(_FROM_DISK)
    if workers:
        if not absl.flags.FLAGS.is_parsed():
            absl.flags.FLAGS.mark_as_parsed()  # grain's workers ask for theirs
        ahead = ahead.mp_prefetch(MultiprocessingOptions(num_workers=workers), _end_with_parent)
    return iter(ahead)


def _end_with_parent(*_: int) -> None:
    """End this worker once the process that started it is gone, by whatever signal."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def watch() -> None:
        parent.join()
        os._exit(1)  # at once: what is read ahead waits for a reader that is gone

    threading.Thread(target=watch, daemon=True).start()


def sample(
    train: AbstractImages | grain.MapDataset[Any] | Foreign,
    count: int,
    *,
    at_least: int,
    seed: int,
) -> Dataset:
    """About `count` random images of a set on disk, in memory.

    Of a folder, records and the like, as many of each class, and `at_least` so many where there
    are, in the order they have there; its class names are kept. Of a grain dataset, `count` of all;
    the classes are the numbers of the labels seen.
    """
    known: Any = adapted(train)
    if isinstance(known, AbstractImages):
        low, high = known.labels.min(), known.labels.max()
        if low < 0 or high >= known.num_classes:
            raise DataError(
                f"{known.name} has labels from {low} to {high} and {known.num_classes} class "
                f"names: they must lie in 0..{known.num_classes - 1}."
            )
        rng = np.random.default_rng(seed)
        each = max(at_least, count // known.num_classes)
        members = [np.flatnonzero(known.labels == c) for c in range(known.num_classes)]
        chosen = np.sort(np.concatenate([rng.permutation(m)[:each] for m in members]))
        return Dataset(*known.gather(chosen), known.class_names, known.name)
    some = known.seed(seed).map(_as_pair).shuffle()[:count].to_iter_dataset(_FROM_DISK)
    images, labels = zip(*some, strict=True)
    return Dataset.from_arrays(np.stack(images), np.stack(labels))


@dataclasses.dataclass(eq=False)
class _Batches:
    """A grain data source of all batches of all epochs, each gathered by one call.

    The number of a batch tells its images by itself: reading is stateless, and a saved position is
    enough to go on.
    """

    gather: Callable[[np.ndarray], Batch]
    order: Callable[[int], np.ndarray]
    rows: slice | None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        chosen = self.order(int(index))
        return self.gather(chosen if self.rows is None else chosen[self.rows])


class _Rows(grain.MapDataset):
    """The same rows out of every whole batch of a grain dataset, one after another."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: slice):
        super().__init__(parent)
        self._batch_size, self._first, self._count = batch_size, rows.start, rows.stop - rows.start

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, within = divmod(index, len(self))
        batch, row = divmod(within, self._count)
        at = epoch * len(self._parent) + batch * self._batch_size + self._first + row
        return self._parent[at]


def _as_pair(element: Any) -> tuple[Any, Any]:
    if isinstance(element, dict) and {"image", "label"} <= element.keys():
        element = element["image"], element["label"]
    if isinstance(element, tuple | list) and len(element) == 2:
        return plain_array(element[0], "image"), plain_array(element[1], "label")
    named = f"a dictionary with {sorted(element)}" if isinstance(element, dict) else None
    what = named or repr(type(element))
    raise ValueError(
        f"the grain dataset yields {what}: map it to (image, label) pairs or to dictionaries with "
        "'image' and 'label'."
    )


def _order(labels: np.ndarray, batch_size: int, seed: int, balanced: bool) -> Shuffled | Balanced:
    """Which images make up a batch, by its number."""
    if not balanced:
        return Shuffled(len(labels), batch_size, seed)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ArgumentError(
            "balanced",
            f"needs class numbers: labels are {labels.dtype}{list(labels.shape)}, so leave it out.",
        )
    return Balanced(labels, batch_size, seed)


def _check_sizes(count: int, batch_size: int, rows: slice | None) -> None:
    if not 1 <= batch_size <= count:
        raise ValueError(
            f"batch_size is {batch_size} but there are {count} images: choose it in 1..{count}."
        )
    if rows is None:
        return
    if rows.start is None or rows.stop is None or rows.step not in (None, 1):
        raise ValueError(f"rows is {rows}: name the first and the end, as slice(0, {batch_size}).")
    if not 0 <= rows.start < rows.stop <= batch_size:
        raise ValueError(f"rows is {rows}: choose at least one within 0..{batch_size}.")
