"""Every single damaged byte of an archive or of records is refused, or changes nothing."""

import dataclasses

import numpy as np
import pytest
from test_data_imagenet import COUNT, write_batches, write_tars, write_zips

from official_files import (
    cub_files,
    imagenette_files,
    random_set,
    tiny_imagenet_files,
    write_cifar,
    write_files,
    write_idx,
)
from rcig_eqx.data import DataError, Records, _imagenet, _load, load, write_records
from rcig_eqx.data._imagenet import find_imagenet
from rcig_eqx.data._layouts import IMAGENETTE_CLASSES


def flat(n, *shape):
    """Images of one color each, whose files are small."""
    return np.full((n, *shape), np.arange(n, dtype=np.uint8).reshape(-1, *[1] * len(shape)) * 9)


def idx(folder):
    write_idx(folder, "train", flat(4, 28, 28, 1), np.arange(4, dtype=np.uint8))


def cifar(name, form):
    def write(folder):
        images, labels = flat(10, 32, 32, 3), np.arange(10, dtype=np.uint8)
        write_cifar(folder, name, form, "train", images, labels, archive=True)

    return write


def npz(folder):
    images, labels = random_set(6, (5, 4, 3), 2)
    np.savez_compressed(folder / "train.npz", images=images, labels=labels, class_names=["a", "b"])


def plain_npz(folder):
    images, labels = random_set(6, (5, 4, 3), 2)
    np.savez(folder / "train.npz", images=images, labels=labels, class_names=["a", "b"])


def pictures(files_of, archive, form, count):
    def write(folder):
        pixels = {split: list(flat(count, 8, 8, 3)) for split in ("train", "test")}
        write_files(folder / archive, files_of(pixels)[0], form)

    return write


def imagenette(pixels):
    return imagenette_files(pixels, "imagenette2-160", list(IMAGENETTE_CLASSES))


NAMED = {  # what writes a set, and the set
    "idx.gz": (idx, "mnist"),
    "cifar10 binary": (cifar("cifar10", "binary"), "cifar10"),
    "cifar10 python": (cifar("cifar10", "python3"), "cifar10"),
    "cifar100 python": (cifar("cifar100", "python2"), "cifar100"),
    "tiny": (pictures(tiny_imagenet_files, "tiny-imagenet-200.zip", "zip", 4), "tiny_imagenet"),
    "cub": (pictures(cub_files, "CUB_200_2011.tgz", "tgz", 3), "cub200"),
    "imagenette": (pictures(imagenette, "imagenette2-160.tgz", "tgz", 10), "imagenette"),
    "npz": (npz, None),
    "plain npz": (plain_npz, None),
}
COUNTS = {"tiny_imagenet": 4, "cub200": 3, "imagenette": 10}
STREAMED = {"tars": write_tars, "batches": write_batches, "zips": write_zips}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_imagenet, "COUNTS", {"train": COUNT, "test": COUNT})
    for name, count in COUNTS.items():
        counts = {"train": count, "test": count}
        source = dataclasses.replace(_load.SOURCES[name], counts=counts)
        monkeypatch.setitem(_load.SOURCES, name, source)


def places(content, most):
    """All of a file's bytes, or those at both ends and some between."""
    if len(content) <= most:
        return range(len(content))
    end = most // 4
    ends = [*range(end), *range(len(content) - end, len(content))]
    between = np.random.default_rng(0).integers(end, len(content) - end, most - 2 * end)
    return sorted({*ends, *between.tolist()})


def unseen(folder, read, most):
    """Damages under which what is read is another set, and no `DataError` says so.

    Of a loose table of text, which has no checksum, none.
    """
    rng, right, wrong = np.random.default_rng(0), read(), []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".txt"):
        content = path.read_bytes()
        for place in places(content, most):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                if read() != right:
                    wrong.append((path.name, place, content[place], damaged[place]))
            except DataError:
                pass
        path.write_bytes(content)
    return wrong


def same(data):
    return data.images.tobytes(), data.labels.tolist(), data.class_names


@pytest.mark.parametrize("case", NAMED)
def test_archives(case, tmp_path):
    write, name = NAMED[case]
    write(tmp_path)
    where = {"directory": tmp_path, "download": False} if name else {}
    most = 500 if case == "tiny" else 4000  # all of every other
    assert unseen(tmp_path, lambda: same(load(name or tmp_path, **where)), most) == []


@pytest.mark.parametrize("form", STREAMED)
def test_archives_that_are_streamed(form, tmp_path):
    STREAMED[form](tmp_path / "x")

    def read(split):
        stream = find_imagenet(tmp_path / "x", split)
        return stream and (
            stream.class_names, [(image.tobytes(), label) for image, label in stream.items]
        )  # fmt: skip

    assert unseen(tmp_path, lambda: [read("train"), read("test")], 40) == []


def test_records(tmp_path):
    records = write_records(random_set(9, (4, 4, 3), 3), tmp_path / "x", progress=False)

    def read():
        records = Records(tmp_path / "x")
        records.verify(progress=False)
        return same(records.read())

    assert unseen(records.folder, read, 600) == []


def shorter_header(content):
    return content.replace(b"(6, 5, 4, 3), }", b"(6, 5, 1, 3), }")


def test_an_array_fills_its_member(tmp_path):
    """Its checksum would else not be reached."""
    plain_npz(tmp_path)
    file = tmp_path / "train.npz"
    file.write_bytes(shorter_header(file.read_bytes()))
    with pytest.raises(DataError, match=r"train\.npz"):
        load(tmp_path)
