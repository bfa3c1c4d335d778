"""The official image sets: where they are kept, what their files are, what they contain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Integer, UInt8

from ._cifar import CIFAR10, CIFAR100, CifarLayout
from ._idx import idx_files, read_idx_split
from ._layouts import (
    CUB200,
    IMAGENETTE,
    IMAGENETTE_CLASSES,
    IMAGEWOOF,
    IMAGEWOOF_CLASSES,
    TINY_IMAGENET,
    ImageLayout,
)

_Pair = tuple[UInt8[np.ndarray, "n h w c"], Integer[np.ndarray, " n"]]
Arrays = _Pair | tuple[UInt8[np.ndarray, "n h w c"], Integer[np.ndarray, " n"], tuple[str, ...]]


@dataclass(frozen=True)
class Source:
    """One official set.

    **Arguments:**

    - `title`: its name in messages.
    - `url`: the address the files lie under.
    - `checksums`: every official file and its checksum, `"sha256:…"` or `"md5:…"` as published.
    - `downloads`: the files one split needs, from the split's name.
    - `read`: the arrays of a split from a folder, and the class names if they lie there too, or
        `None` when its files are not there.
    - `image_shape`: height, width and channels.
    - `class_names`: none if they lie with the images.
    - `folders`: further names a folder of this set goes by.
    - `counts`: the images of each split, where files on disk are many and some may be missing.
    """

    title: str
    url: str
    checksums: Mapping[str, str]
    downloads: Callable[[str], tuple[str, ...]]
    read: Callable[[Path, str], Arrays | None]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    folders: tuple[str, ...] = ()
    counts: Mapping[str, int] | None = None


SPLITS = ("train", "test")

# Of the gzipped IDX files.
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_FASHION_SHA256 = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_CIFAR10_SHA256 = {
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
}
_CIFAR100_SHA256 = {
    "cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
}

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
_CLOTHES = (
    *_names("T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag"),
    "Ankle boot",
)
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


def _idx(title: str, url: str, sha256: dict[str, str], names: tuple[str, ...], folder: str):
    return Source(
        title=title,
        url=url,
        checksums={f"{file}.gz": f"sha256:{digest}" for file, digest in sha256.items()},
        downloads=lambda split: tuple(f"{file}.gz" for file in idx_files(split)),
        read=read_idx_split,
        image_shape=(28, 28, 1),
        class_names=names,
        folders=(folder,),
    )


def _cifar(title: str, sha256: dict[str, str], names: tuple[str, ...], layout: CifarLayout):
    return Source(
        title=title,
        url="https://www.cs.toronto.edu/~kriz/",
        checksums={file: f"sha256:{digest}" for file, digest in sha256.items()},
        downloads=lambda split: (layout.binary_archive,),
        read=layout.read_split,
        image_shape=(32, 32, 3),
        class_names=names,
    )


def _images(
    title: str,
    url: str,
    md5: str,
    layout: ImageLayout,
    counts: tuple[int, int],
    names: Mapping[str, str] = MappingProxyType({}),
):
    return Source(
        title=title,
        url=url,
        checksums={layout.archive: f"md5:{md5}"},
        downloads=lambda split: (layout.archive,),
        read=layout.read_split,
        image_shape=(layout.size, layout.size, 3),
        class_names=tuple(names.values()),
        counts=dict(zip(SPLITS, counts, strict=True)),
    )


_FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas/"

SOURCES: dict[str, Source] = {
    "mnist": _idx(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _MNIST_SHA256,
        _DIGITS,
        "MNIST/raw",
    ),
    "fashion_mnist": _idx(
        "Fashion-MNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        _FASHION_SHA256,
        _CLOTHES,
        "FashionMNIST/raw",
    ),
    "cifar10": _cifar("CIFAR-10", _CIFAR10_SHA256, _CIFAR10_NAMES, CIFAR10),
    "cifar100": _cifar("CIFAR-100", _CIFAR100_SHA256, _CIFAR100_NAMES, CIFAR100),
    "tiny_imagenet": _images(
        "Tiny-ImageNet",
        "http://cs231n.stanford.edu/",
        "90528d7ca1a48142e341f4ef8d21d0de",
        TINY_IMAGENET,
        (100_000, 10_000),
    ),
    "cub200": _images(
        "CUB-200-2011",
        "https://data.caltech.edu/records/65de6-vp158/files/",
        "97eceeb196236b17998738112f37df78",
        CUB200,
        (5_994, 5_794),
    ),
    "imagenette": _images(
        "Imagenette",
        _FAST_AI,
        "e793b78cc4c9e9a4ccc0c1155377a412",
        IMAGENETTE,
        (9_469, 3_925),
        IMAGENETTE_CLASSES,
    ),
    "imagewoof": _images(
        "ImageWoof",
        _FAST_AI,
        "3d200a7be99704a0d7509be2a9fbfe15",
        IMAGEWOOF,
        (9_025, 3_929),
        IMAGEWOOF_CLASSES,
    ),
}
