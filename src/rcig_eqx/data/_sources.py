"""The official image sets: where they are kept, what their files are, what they contain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Integer, UInt8

from ._cifar import CIFAR10, CIFAR100, CifarLayout
from ._idx import idx_downloads, read_idx_split
from ._layouts import (
    CUB200,
    IMAGENETTE,
    IMAGENETTE_CLASSES,
    IMAGEWOOF,
    IMAGEWOOF_CLASSES,
    TINY_IMAGENET,
    ImageLayout,
)
from ._official import OFFICIAL, OfficialFile

_Pair = tuple[UInt8[np.ndarray, "n h w c"], Integer[np.ndarray, " n"]]
Arrays = _Pair | tuple[UInt8[np.ndarray, "n h w c"], Integer[np.ndarray, " n"], tuple[str, ...]]


@dataclass(frozen=True)
class Source:
    """One official set.

    `read(folder, split)` has class names too if they lie there, and is `None` without the files.
    """

    title: str  # in messages
    url: str  # which the files lie under
    files: Mapping[str, OfficialFile]
    downloads: Callable[[str], tuple[str, ...]]  # the files that a split needs
    read: Callable[[Path, str], Arrays | None]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]  # none if they lie with the images
    folders: tuple[str, ...] = ()  # further names a folder of this set goes by
    counts: Mapping[str, int] | None = None  # of each split's images, where some may be missing


SPLITS = ("train", "test")

# The digest of each official label file's contents (header left out): MNIST and Fashion-MNIST use
# the same file names, so a folder of the one would otherwise pass for the other.
LABELS_MD5 = {
    "e86ee40d66677c011a9abda399ec8c4d": ("mnist", "train"),
    "073c3904dfbd3e141ff8aa01cfde6b15": ("mnist", "test"),
    "3236f6424fc25388b2834cb19942cf7e": ("fashion_mnist", "train"),
    "8dea97a4e78c1bd1b5a6e8efbb870b6e": ("fashion_mnist", "test"),
}


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DIGITS = _names("0 1 2 3 4 5 6 7 8 9")
_CLOTHES = _names("T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag")
_CLOTHES = (*_CLOTHES, "Ankle boot")
_CIFAR10_NAMES = _names("airplane automobile bird cat deer dog frog horse ship truck")
_CIFAR100_NAMES = _names(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """
)


def _idx(title: str, url: str, name: str, names: tuple[str, ...], folder: str) -> Source:
    reads = (idx_downloads, read_idx_split, (28, 28, 1))
    return Source(title, url, OFFICIAL[name], *reads, names, (folder,))


def _cifar(title: str, name: str, names: tuple[str, ...], layout: CifarLayout) -> Source:
    reads = (lambda split: (layout.binary_archive,), layout.read_split, (32, 32, 3))
    return Source(title, "https://www.cs.toronto.edu/~kriz/", OFFICIAL[name], *reads, names)


def _images(
    title: str,
    url: str,
    name: str,
    layout: ImageLayout,
    counts: tuple[int, int],
    names: Mapping[str, str] = MappingProxyType({}),
) -> Source:
    numbers: dict[str, int] = dict(zip(SPLITS, counts, strict=True))
    reads = (lambda split: (layout.archive,), layout.read_split, (layout.size, layout.size, 3))
    return Source(title, url, OFFICIAL[name], *reads, tuple(names.values()), counts=numbers)


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_ZALANDO = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"
_STANFORD = "https://cs231n.stanford.edu/"
_CALTECH = "https://data.caltech.edu/records/65de6-vp158/files/"
_FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas/"

SOURCES: dict[str, Source] = {
    "mnist": _idx("MNIST", _MNIST, "mnist", _DIGITS, "MNIST/raw"),
    "fashion_mnist": _idx("Fashion-MNIST", _ZALANDO, "fashion_mnist", _CLOTHES, "FashionMNIST/raw"),
    "cifar10": _cifar("CIFAR-10", "cifar10", _CIFAR10_NAMES, CIFAR10),
    "cifar100": _cifar("CIFAR-100", "cifar100", _CIFAR100_NAMES, CIFAR100),
    "tiny_imagenet": _images(
        "Tiny-ImageNet", _STANFORD, "tiny_imagenet", TINY_IMAGENET, (100_000, 10_000)
    ),
    "cub200": _images("CUB-200-2011", _CALTECH, "cub200", CUB200, (5_994, 5_794)),
    "imagenette": _images(
        "Imagenette", _FAST_AI, "imagenette", IMAGENETTE, (9_469, 3_925), IMAGENETTE_CLASSES
    ),
    "imagewoof": _images(
        "ImageWoof", _FAST_AI, "imagewoof", IMAGEWOOF, (9_025, 3_929), IMAGEWOOF_CLASSES
    ),
}
