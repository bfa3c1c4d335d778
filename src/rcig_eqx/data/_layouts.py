"""Official sets of encoded images, as an archive or extracted: Tiny-ImageNet, CUB, Imagenette."""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from ._archives import Entry, entries, ordered
from ._dataset import DataError
from ._resize import decode

Arrays = tuple[UInt8[np.ndarray, "n h w 3"], Int32[np.ndarray, " n"], tuple[str, ...]]
Labeled = tuple[dict[str, int], tuple[str, ...]]


@dataclass(frozen=True)
class ImageLayout:
    """How one set is laid out.

    `label(names of images, text of tables by name, split)` is the class number of each image of
    the split, by name, and the class names.
    """

    folder: str  # that everything lies in, extracted or within the archive
    archive: str
    size: int  # pixels that the middle square of every image is brought to
    images: Mapping[str, str]  # a pattern of each split's names; it may take in other images too
    tables: tuple[str, ...]  # text files
    label: Callable[[list[str], Mapping[str, str], str], Labeled]

    def read_split(self, folder: Path, split: str) -> Arrays | None:
        """Images and labels of a split in `folder`, sorted by name, and the class names.

        `folder` may hold the extracted folder or the archive, or be the extracted folder itself;
        `None` if it is neither. `DataError` for one that is damaged or incomplete.
        """
        archive, extracted = folder / self.archive, (folder / self.folder, folder)
        there = [p for p in extracted if p.name == self.folder and p.is_dir()]
        there += [archive] * archive.is_file()
        if not there:
            return None
        found = there[0]
        tables, names, pattern = {}, [], re.compile(self.images[split])

        def images():
            for entry in entries(found):
                name = entry.name.removeprefix(f"{self.folder}/")
                if name in self.tables:
                    tables[name] = entry.text()
                elif pattern.fullmatch(name):
                    names.append(name)
                    yield entry, entry.read()

        def pixels(image: tuple[Entry, bytes]) -> bytes:
            return decode(image[1], image[0].where, channels=3, size=self.size).tobytes()

        # One growing array: a list of images would be as much again when they are put together.
        content = bytearray()
        for image in ordered(pixels, images()):
            content += image
        missing = [name for name in self.tables if name not in tables]
        if missing:
            raise DataError(f"{found} lacks {', '.join(missing)}: get the official archive again.")
        try:
            labels, class_names = self.label(names, tables, split)
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"{found}: its tables and its images do not fit together ({error!r}): get the "
                "official archive again."
            ) from error
        lost = sorted(labels.keys() - set(names))
        if lost:
            raise DataError(
                f"{found} lacks {len(lost)} images, the first {lost[0]}: it is truncated or not "
                "the official archive, so get it again."
            )
        empty = set(range(len(class_names))) - set(labels.values())
        if empty:
            raise DataError(
                f"{found} has no {split} images of {class_names[min(empty)]!r}: it is truncated or "
                "not the official archive, so get it again."
            )
        stack = np.frombuffer(content, np.uint8).reshape(-1, self.size, self.size, 3)
        row, order = {name: number for number, name in enumerate(names)}, sorted(labels)
        rows = [row[name] for name in order]
        if rows != list(range(len(stack))):  # else there is nothing to copy
            stack = stack[rows]
        return stack, np.array([labels[name] for name in order], np.int32), class_names


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def _tiny_labels(names: list[str], tables: Mapping[str, str], split: str) -> Labeled:
    wnids = tables["wnids.txt"].split()
    words = dict(line.split("\t", 1) for line in tables["words.txt"].splitlines() if line)
    number = {wnid: i for i, wnid in enumerate(wnids)}
    if split == "train":
        labels = {name: number[name.split("/")[1]] for name in names}
    else:
        rows = _lines(tables["val/val_annotations.txt"])
        labels = {f"val/images/{row[0]}": number[row[1]] for row in rows}
    return labels, distinct([words[wnid].split(",")[0].strip() for wnid in wnids], wnids)


_CUB_TABLES = ("classes", "images", "image_class_labels", "train_test_split")


def _cub_labels(names: list[str], tables: Mapping[str, str], split: str) -> Labeled:
    classes, files, labels, training = (
        {int(row[0]): row[1] for row in _lines(tables[f"{table}.txt"])} for table in _CUB_TABLES
    )
    wanted = {"train": "1", "test": "0"}[split]
    if files.keys() != labels.keys() or files.keys() != training.keys():
        raise ValueError("the tables are of different images")
    order = sorted(classes)
    birds = tuple(classes[i].split(".", 1)[1].replace("_", " ") for i in order)
    chosen = [i for i in files if training[i] == wanted]
    return {f"images/{files[i]}": order.index(int(labels[i])) for i in chosen}, birds


def _folder_labels(classes: Mapping[str, str], names: list[str], *_: Any) -> Labeled:
    number = {wnid: i for i, wnid in enumerate(classes)}
    return {name: number[name.split("/")[1]] for name in names}, tuple(classes.values())


def distinct(names: list[str], numbers: list[str]) -> tuple[str, ...]:
    """Names of classes; those that several share are told apart by their WordNet numbers."""
    both = zip(names, numbers, strict=True)
    return tuple(name if names.count(name) == 1 else f"{name} ({n})" for name, n in both)


def _imagenette(name: str, classes: Mapping[str, str]) -> ImageLayout:
    folders = {"train": "train", "test": "val"}
    images = {split: rf"{inside}/n\d+/[^/.][^/]*\.JPEG" for split, inside in folders.items()}
    label = functools.partial(_folder_labels, classes)
    return ImageLayout(name, f"{name}.tgz", 128, images, (), label)


def _numbered(text: str) -> dict[str, str]:
    """Class names by WordNet number."""
    return dict(each.strip().split(" ", 1) for each in " ".join(text.split()).split(","))


IMAGENETTE_CLASSES = _numbered(
    """
    n01440764 tench, n02102040 English springer, n02979186 cassette player, n03000684 chain saw,
    n03028079 church, n03394916 French horn, n03417042 garbage truck, n03425413 gas pump,
    n03445777 golf ball, n03888257 parachute
    """
)
IMAGEWOOF_CLASSES = _numbered(
    """
    n02086240 Shih-Tzu, n02087394 Rhodesian ridgeback, n02088364 beagle, n02089973 English
    foxhound, n02093754 Border terrier, n02096294 Australian terrier, n02099601 golden
    retriever, n02105641 Old English sheepdog, n02111889 Samoyed, n02115641 dingo
    """
)

TINY_IMAGENET = ImageLayout(
    folder="tiny-imagenet-200",
    archive="tiny-imagenet-200.zip",
    size=64,
    images={"train": r"train/n\d+/images/[^/.][^/]*\.JPEG", "test": r"val/images/[^/.][^/]*\.JPEG"},
    tables=("wnids.txt", "words.txt", "val/val_annotations.txt"),
    label=_tiny_labels,
)
CUB200 = ImageLayout(
    folder="CUB_200_2011",
    archive="CUB_200_2011.tgz",
    size=32,
    # Which split an image is of may come after it in the archive.
    images=dict.fromkeys(("train", "test"), r"images/[^/]+/[^/.][^/]*\.jpg"),
    tables=tuple(f"{table}.txt" for table in _CUB_TABLES),
    label=_cub_labels,
)
IMAGENETTE = _imagenette("imagenette2-160", IMAGENETTE_CLASSES)
IMAGEWOOF = _imagenette("imagewoof2-160", IMAGEWOOF_CLASSES)
