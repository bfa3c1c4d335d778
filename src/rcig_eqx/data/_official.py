"""Official files: their sizes and published digests, which are compared once."""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._cache import cache_folder
from ._dataset import DataError

_CHUNK = 2**20


class OfficialFile(NamedTuple):
    """`size` in bytes, `None` if it is not known; `digest` is `"sha256:…"` or `"md5:…"`."""

    size: int | None
    digest: str


def _idx(*rows: tuple[str, int, str, int, str]) -> dict[str, OfficialFile]:
    """Gzipped files as published, and what they unpack to."""
    files: dict[str, OfficialFile] = {}
    for name, packed, of_packed, unpacked, of_unpacked in rows:
        files[f"{name}-ubyte.gz"] = OfficialFile(packed, f"sha256:{of_packed}")
        files[f"{name}-ubyte"] = OfficialFile(unpacked, f"sha256:{of_unpacked}")
    return files


OFFICIAL: dict[str, Mapping[str, OfficialFile]] = {
    "mnist": _idx(
        ("train-images-idx3",
         9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
         47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1",
         28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
         60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("t10k-images-idx3",
         1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1",
         4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
         10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    "fashion_mnist": _idx(
        ("train-images-idx3",
         26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
         47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ("train-labels-idx1",
         29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
         60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ("t10k-images-idx3",
         4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
         7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ("t10k-labels-idx1",
         5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
         10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    "cifar10": {
        "cifar-10-binary.tar.gz": OfficialFile(170_052_171,
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        "cifar-10-python.tar.gz": OfficialFile(170_498_071,
            "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
        "data_batch_1": OfficialFile(31_035_704, "md5:c99cafc152244af753f735de768cd75f"),
        "data_batch_2": OfficialFile(31_035_320, "md5:d4bba439e000b95fd0a9bffe97cbabec"),
        "data_batch_3": OfficialFile(31_035_999, "md5:54ebc095f3ab1f0389bbae665268c751"),
        "data_batch_4": OfficialFile(31_035_696, "md5:634d18415352ddfa80567beed471001a"),
        "data_batch_5": OfficialFile(31_035_623, "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
        "test_batch": OfficialFile(31_035_526, "md5:40351d587109b95175f43aff81a1287e"),
    },
    "cifar100": {
        "cifar-100-binary.tar.gz": OfficialFile(168_513_733,
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        "cifar-100-python.tar.gz": OfficialFile(169_001_437,
            "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
        "train": OfficialFile(155_249_918, "md5:16019d7e3df5f24257cddd939b257f8d"),
        "test": OfficialFile(31_049_908, "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"),
    },
    "tiny_imagenet": {"tiny-imagenet-200.zip": OfficialFile(248_100_043,
        "sha256:6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821")},
    "cub200": {"CUB_200_2011.tgz": OfficialFile(1_150_585_339,
        "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081")},
    "imagenette": {"imagenette2-160.tgz": OfficialFile(99_003_388,
        "sha256:64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5")},
    "imagewoof": {"imagewoof2-160.tgz": OfficialFile(None, "md5:3d200a7be99704a0d7509be2a9fbfe15")},
    "imagenet64": {
        "ILSVRC2012_img_train.tar": OfficialFile(147_897_477_120,
            "md5:1d675b47d978889d74fa0da5fadfb00e"),
        "ILSVRC2012_img_val.tar": OfficialFile(6_744_924_160,
            "md5:29b22e2961454d5413ddabcf34fc5622"),
    },
}  # fmt: skip


@contextlib.contextmanager
def opened(path: Path, name: str | None = None) -> Iterator[io.BufferedReader]:
    """A file to be read once from its beginning; what the caller leaves is read at the end.

    `DataError` then if it has the name and size of an official file and not its digest. A digest
    that was right is remembered in the cache, until the file changes; a file of another size is
    none of ours. `name` is the official name, where the file's own is another.
    """
    with path.open("rb") as file:
        digests = _wanted(path, name or path.name)
        found = {kind: hashlib.new(kind, usedforsecurity=False) for kind, _ in digests}
        hashing: Any = _Hashing(file, found.values())
        reader = io.BufferedReader(hashing, _CHUNK)
        yield reader
        while reader.read(_CHUNK):
            pass
    if digests and not any(found[kind].hexdigest() == digest for kind, digest in digests):
        raise DataError(
            f"{path} does not have the published checksum of {name or path.name}: it is damaged or "
            "of another set, so delete it and get it again."
        )
    with contextlib.suppress(OSError, ValueError):  # no home, no room, no right to write
        if digests:
            stamp = _stamp(path)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()


def check(path: Path) -> None:
    """Raise `DataError` as `opened` does, for a file that is not read in one pass."""
    with opened(path):
        pass


def _wanted(path: Path, name: str) -> list[tuple[str, str]]:
    """`(kind, digest)` of the official files it may be; none if it was found right before."""
    size = path.stat().st_size
    known = [files[name] for files in OFFICIAL.values() if name in files]
    wanted = [file.digest.split(":") for file in known if file.size == size]
    with contextlib.suppress(OSError, ValueError):
        if wanted and _stamp(path).exists():
            return []
    return [(kind, digest) for kind, digest in wanted]


def _stamp(path: Path) -> Path:
    """An empty file that says that `path`, as it is now, was found right."""
    state = path.stat()
    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    return cache_folder() / "checked" / hashlib.sha256(key.encode(errors="replace")).hexdigest()


class _Hashing(io.RawIOBase):
    name, mode = "", "rb"  # what a buffer around it is asked for

    def __init__(self, file: io.BufferedReader, digests: Any):
        self._file, self._digests = file, digests

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._file.readinto(buffer)
        for digest in self._digests:
            digest.update(memoryview(buffer)[:count])
        return count
