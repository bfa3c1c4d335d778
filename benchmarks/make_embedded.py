"""Makes the subset of Fashion-MNIST that comes with the package, byte for byte the same each time.

    python benchmarks/make_embedded.py [directory with the official files]

The first 500 training and the first 100 test images of each class, in the official order.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from rcig_eqx.data import Dataset, load

PER_CLASS = {"train": 500, "test": 100}
TARGET = Path(__file__).parents[1] / "src/rcig_eqx/data/embedded/fashion_mnist_small.npz"


def first_of_each_class(dataset: Dataset, k: int) -> Dataset:
    members = [np.flatnonzero(dataset.labels == i)[:k] for i in range(dataset.num_classes)]
    return dataset.subset(np.sort(np.concatenate(members)))


def main(directory: str | None = None) -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, k in PER_CLASS.items():
        small = first_of_each_class(load("fashion_mnist", split, directory=directory), k)
        arrays |= {f"{split}_images": small.images, f"{split}_labels": small.labels}
    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            # A ZipInfo of its own carries a fixed date; the archive then depends on pixels only.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
