"""What a layout of published sets is."""

import abc
import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Shaped

from ..._checks import ArgumentError
from .._files import MAX_FILE


@dataclasses.dataclass(frozen=True)
class StoredSet:
    """What the files of a published set say.

    - `images`: `[n h w c]`, as they are stored.
    - `labels`: class numbers `[n]`, soft labels `[n classes]`, or `None`: then the images are
      ordered by class, as many of each.
    - `class_names`: one per class number, if they are told. `load_published` finds them among those
      that it is given. Names that are all numbers, as `3`, `00003` or `new003`, are class numbers.
    - `learning_rate`: that of training on the set, if it is told.
    """

    images: Shaped[np.ndarray, "..."]
    labels: Shaped[np.ndarray, "..."] | None = None
    class_names: tuple[str, ...] | None = None
    learning_rate: float | None = None


class AbstractLayout(abc.ABC):
    """How one family of methods stores its sets. Subclass it and register it in `LAYOUTS`.

    - `names`: a regular expression of the names of its files, one per set.
    - `pixels`: a regular expression of the names of files whose images are not preprocessed, but
      pixels in [0, 1].
    - `unbounded`: one of those whose pixels may be any numbers.
    - `constants`: mean and standard deviation per channel that the authors take, by data set.
    - `mirrored`: whether its RGB sets stand for their mirror images too.
    - `tells_rate`: whether `files` has a place for a learning rate.
    """

    names: str = ""
    pixels: str = ""
    unbounded: str = ""
    constants: ClassVar[Mapping[str, tuple[Sequence[float], Sequence[float]]]] = {}
    mirrored: bool = False
    tells_rate: bool = False

    def find(self, path: Path) -> list[Path]:
        """The files of this layout in a folder, or the file itself if it is one."""
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [file for file in files if re.fullmatch(self.names, file.name)]

    @abc.abstractmethod
    def read(self, path: Path) -> Sequence[StoredSet]:
        """The sets in a file, one per experiment. Nothing in the file may run.

        `load_published` checks them. It tells all that is raised here as damage of the file, but
        for `OSError` and `ImportError`.
        """

    def files(
        self,
        images: Float[np.ndarray, "n c h w"],
        labels: Shaped[np.ndarray, "n *classes"],
        learning_rate: float | None,
    ) -> dict[str, bytes]:
        """The contents of the files of a set by name, labels being class numbers or float32.

        Raises `ValueError` if the layout is only read.
        """
        raise ArgumentError("layout", "is one that is only read: pass mtt, dc, dd_ranking or hf.")


def channels_last(images: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "n h w c"]:
    """Images [n c h w] as this library has them. `ValueError` for another shape."""
    if images.ndim != 4:
        raise ValueError(f"its images are {list(images.shape)}, not [n c h w]")
    return np.moveaxis(images, 1, 3)


def part(tree: Any, *names: str) -> Any:
    """What nested dictionaries have under these names. `ValueError` if they have not."""
    for name in names:
        if not isinstance(tree, dict) or name not in tree:
            raise ValueError(f"it has no {'/'.join(names)}")
        tree = tree[name]
    return tree


def check_size(file: Path) -> None:
    """Raise `ValueError` for a file of more bytes than is read."""
    if file.stat().st_size > MAX_FILE:
        raise ValueError(f"{file.name} has more than {MAX_FILE:,} bytes")


def check_version(called: str, module: Any, oldest: str) -> None:
    """Raise `ImportError` for a package in which a file can run code: one before `oldest`."""
    found, least = (
        tuple(map(int, re.findall(r"\d+", version)[: oldest.count(".") + 1]))
        for version in (module.__version__, oldest)
    )
    if found < least:
        needed = f"{module.__name__}>={oldest}"
        raise ImportError(
            f'A file can run code in {called} {module.__version__}: pip install "{needed}".'
        )


def needed(module: str, package: str) -> Any:
    """A module of a package that not everybody has. `ImportError` with how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'This layout needs {module}: pip install "{package}".') from error
