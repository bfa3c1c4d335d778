"""`open_records`: a set by name, streamed from disk instead of held."""

import os

from ._cache import cache_folder
from ._dataset import DataError
from ._imagenet import HOW_TO_GET, NAME, find_imagenet
from ._load import DATASETS, check_directory, folders_of, load, unknown
from ._paths import user_path
from ._records import Records, write_records, write_stream
from ._sources import SPLITS


def open_records(
    name: str,
    split: str = "train",
    *,
    directory: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: bool = True,
) -> Records:
    """A set by name as [`Records`][rcig_eqx.data.Records] on disk, written there the first time.

    **Arguments:**

    - `name`: "imagenet64", ImageNet-1k at 64 pixels, which is too large for `load`, or one of the
        names `load` takes.
    - `split`: "train" or "test"; the test split of ImageNet is its validation images.
    - `directory`: where the official files lie; looked in before the places `load` looks in. Not
        needed once the records are written.
    - `folder`: where the records are kept, in `<name>-<split>`; `~/.cache/rcig_eqx/records` if
        `None`. ImageNet's take 15.7 GB.
    - `download`: whether a set that is nowhere may be downloaded. ImageNet cannot be.
    - `progress`: whether to show a bar while they are written.

    ImageNet is taken as the official tars with the devkit, as `train/<wnid>/` and `val/<wnid>/`, or
    as the official down-sampled 64x64 images in npz, zipped or not, and read image by image. Images
    are brought to 64 pixels by `resize`; the down-sampled ones are as they are. Raises as `load`
    and `write_records` do.
    """
    if name not in DATASETS:
        own = " For one of yours: data.write_records(data.ImageFolder(path), folder)."
        raise ValueError(unknown("dataset", name, list(DATASETS)) + own)
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    place = user_path(folder or cache_folder() / "records") / f"{name}-{split}"
    if place.exists():
        return Records(place)
    if name != NAME:
        data = load(name, split, directory=directory, download=download)
        return write_records(data, place, progress=progress)
    check_directory(directory)
    looked: list[str] = []
    for candidate in folders_of(name, ("imagenet", "ILSVRC2012"), directory):
        if stream := find_imagenet(candidate, split):
            return write_stream(stream, place, progress=progress)
        looked.append(str(candidate))
    where = ", ".join(looked)
    raise DataError(f"ImageNet ({split}) is in none of {where}. {HOW_TO_GET}: place them there.")
