"""What every labeled set on disk is, however it is kept."""

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32, Integer, Shaped

from ._arrays import plain_array, row_numbers
from ._dataset import Dataset


class AbstractImages(ABC):
    """Labeled images that stay on disk, read one by one when asked for: a grain data source.

    `images[i]` is `(image [h w c], label)`. `distill`, `evaluate`, `data.stream`, `data.sample`,
    `data.zca` and `data.write_records` take any of them:
    [`ImageFolder`][rcig_eqx.data.ImageFolder], [`Records`][rcig_eqx.data.Records], what
    [`adapt`][rcig_eqx.data.adapt] makes, or a subclass of yours, which can be pickled, has these
    attributes and reads one `image`.

    - `name`: what the set is called in reports.
    - `class_names`: one distinct name per class.
    - `image_shape`: height, width and channels, the same for all.
    - `dtype`: uint8 unless said otherwise.
    - `labels` [n]: the class number of each image, known without reading the images.
    - `workers`: processes that read ahead for `distill`. Set it on the instance; 0, the default,
      uses threads. The batches are the same. A script that asks for workers guards its main part
      by `if __name__ == "__main__"`.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    dtype: np.dtype = np.dtype(np.uint8)
    workers: int = 0
    labels: Int32[np.ndarray, " n"]

    @abstractmethod
    def image(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        """Image number `index`, of `image_shape` and `dtype`."""
        raise NotImplementedError

    @property
    def marks(self) -> Iterable[str]:
        """Text that tells this set from others of the same size, for runs to be resumed with."""
        return ()

    @property
    def num_classes(self) -> int:
        """The number of class names."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        of = f"{len(self)} images, {self.num_classes} classes"
        return f"{type(self).__name__}({self.name!r}: {of})"

    def __getitem__(self, index: SupportsIndex) -> tuple[Shaped[np.ndarray, "h w c"], int]:
        number = operator.index(index)
        return plain_array(self.image(number), "image"), int(self.labels[number])

    def gather(
        self, indices: Sequence[int] | Integer[np.ndarray, " m"] | range
    ) -> tuple[Shaped[np.ndarray, "m h w c"], Int32[np.ndarray, " m"]]:
        """The images at `indices`, in that order, and their labels.

        Raises `ValueError` for a mask: pass `np.flatnonzero(mask)`.
        """
        numbers = row_numbers(indices)
        images = np.empty((len(numbers), *self.image_shape), self.dtype.newbyteorder("="))
        for row, index in enumerate(numbers.tolist()):
            images[row] = plain_array(self.image(index), "image")
        return images, plain_array(self.labels, "labels")[numbers]

    def read(self) -> Dataset:
        """All images in memory."""
        return Dataset(*self.gather(range(len(self))), self.class_names, self.name)

    def subset(
        self, indices: Sequence[int] | Integer[np.ndarray, " m"] | range
    ) -> "AbstractImages":
        """The images at `indices`, in that order, with the same classes; none is read."""
        return _Part(self, row_numbers(indices))


class _Part(AbstractImages):
    """Some images of a set on disk."""

    def __init__(self, whole: AbstractImages, indices: Integer[np.ndarray, " m"]):
        if not len(indices):
            raise ValueError("indices is empty: a data set needs at least one image.")
        self._whole, self._indices = whole, indices
        self.name, self.class_names = whole.name, whole.class_names
        self.image_shape, self.dtype, self.workers = whole.image_shape, whole.dtype, whole.workers
        self.labels = plain_array(whole.labels, "labels")[indices]

    def image(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        return self._whole.image(int(self._indices[index]))

    @property
    def marks(self) -> Iterable[str]:
        """Those of the whole set, and which images of it these are."""
        yield from self._whole.marks
        yield hashlib.sha256(self._indices.astype("<i8").tobytes()).hexdigest()
