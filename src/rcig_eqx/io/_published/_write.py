"""A distilled set written as other projects publish theirs."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np

from ..._checks import ArgumentError, check_number
from ..._coreset import Coreset, centered_labels, check_coreset
from ...data._paths import user_path
from .._files import write_atomically
from .._result import DistillResult
from . import LAYOUTS
from ._load import Published


def write_published(
    distilled: DistillResult | Published | Coreset,
    folder: str | os.PathLike[str],
    *,
    layout: str = "mtt",
    learning_rate: float | None = None,
) -> Path:
    """Write a distilled set as others publish theirs. `load_published` reads the same numbers back.

    Images are written as networks see them: `[n c h w]`, float32, preprocessed. Labels are written
    as learned, float32, or as class numbers if all of them are one-hot − 1/C. A set with class
    numbers is read back sorted by class.

    **Arguments:**

    - `distilled`: what `distill`, `load_result` or `load_published` returned, or a `Coreset`.
    - `folder`: where to; it must not exist, or be empty. It appears once it is complete.
    - `layout`: `"mtt"`, `"dc"`, `"dd_ranking"`, or `"hf"`, a folder with one Parquet file that
      `datasets.load_dataset(folder)` reads. The first three need PyTorch, the last `datasets`.
    - `learning_rate`: that of training on the set. `"mtt"` and `"dd_ranking"` have a file for it.

    **Returns:** the folder. No layout has a place for the preprocessing or for mirror images: say
    them beside it. Warns of a set that stands for its mirror images too. Raises `ValueError` for
    what the layout cannot hold, `FileExistsError` if something stands there, and `OSError` if it
    cannot be written.
    """
    whole = isinstance(distilled, DistillResult | Published)
    coreset = distilled.coreset if whole else distilled
    check_coreset(coreset, "distilled")
    made = LAYOUTS.find("layout", layout)()
    if coreset.images.ndim != 4:
        raise ArgumentError("distilled", "holds no images [n h w c]: keep it with result.save.")
    if learning_rate is not None:
        check_number("learning_rate", learning_rate, lambda x: 0 < x < np.inf, "positive")
        if not made.tells_rate:
            raise ArgumentError("learning_rate", f"has no file in the layout {layout!r}: leave it.")
    folder = user_path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: choose another place.")
    images, labels = (np.asarray(x, np.float32) for x in (coreset.images, coreset.labels))
    numbers = labels.argmax(1)
    if np.array_equal(labels, centered_labels(numbers, coreset.num_classes)):
        labels = numbers
    images = np.ascontiguousarray(np.moveaxis(images, 3, 1))
    files = made.files(images, labels.copy(), learning_rate)
    if coreset.flip:
        warnings.warn(
            "This set stands for its mirror images too, and its files do not say so: tell whoever "
            "trains on it to mirror it.",
            RuntimeWarning,
            stacklevel=2,
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", dir=folder.parent))
    try:
        for name, content in files.items():
            write_atomically(staging / "new" / name, content)
        if folder.exists():
            folder.rmdir()
        (staging / "new").rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
