"""Files that claim too much, and official ones that are not what was published."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from official_files import cub_files, random_set, write_cifar, write_idx, write_tar
from rcig_eqx.data import DataError, _archives, _official, load
from rcig_eqx.data._matlab import read_mat
from rcig_eqx.data._official import OfficialFile, check

NAME = "cifar-10-binary.tar.gz"


def published(monkeypatch, file):
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    official = {"x": {file.name: OfficialFile(file.stat().st_size, digest)}}
    monkeypatch.setattr(_official, "OFFICIAL", official)


def flip(file):
    """Another byte, in what no other checksum is of: the time in gzip's header."""
    content = bytearray(file.read_bytes())
    content[4] ^= 1
    file.write_bytes(content)
    os.utime(file, (0, 0))


@pytest.mark.parametrize("cached", [True, False])
def test_an_official_file_is_compared_once(cached, tmp_path, monkeypatch):
    if not cached:
        (tmp_path / "no folder").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    write_cifar(tmp_path, "cifar10", "binary", "test", *random_set(3, (32, 32, 3), 3), archive=True)
    file = tmp_path / NAME
    published(monkeypatch, file)
    hashed = []
    monkeypatch.setattr(
        _official.hashlib, "new", lambda *a, **k: hashed.append(a) or hashlib.sha256()
    )
    for _ in range(2):
        load("cifar10", "test", directory=tmp_path, download=False)
    assert len(hashed) == (1 if cached else 2)
    flip(file)
    with pytest.raises(DataError, match=rf"{NAME} does not have the published checksum"):
        load("cifar10", "test", directory=tmp_path, download=False)


def test_a_file_of_another_size_is_none_of_the_official(tmp_path, monkeypatch):
    write_idx(tmp_path, "test", *random_set(5, (28, 28, 1), 5))
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    published(monkeypatch, file)
    file.write_bytes(file.read_bytes() + bytes(3))  # zeros may follow in a gzip file
    assert len(load("mnist", "test", directory=tmp_path, download=False)) == 5
    published(monkeypatch, file)
    flip(file)
    with pytest.raises(DataError, match="published checksum"):
        check(file)


def tar_with(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    return out.getvalue()


def long_note(size):
    """A tar whose member's name has `size` bytes."""
    note = tarfile.TarInfo("././@LongLink")
    note.type, note.size = tarfile.GNUTYPE_LONGNAME, size
    return note.tobuf(tarfile.GNU_FORMAT) + bytes(size) + tar_with(("x", 1))


TARS = {
    "a large member": lambda: tar_with(("cifar-10-batches-bin/test_batch.bin", 2**28 + 1)),
    "many members": lambda: tar_with(*[(f"{i}", 2**21) for i in range(40)]),
    "a long name": lambda: long_note(2**26),
    "what follows the end": lambda: tar_with(("x", 1)) + bytes(2**27),
}


@pytest.mark.parametrize("case", TARS)
def test_a_tar_is_refused_before_memory_goes(case, tmp_path, monkeypatch):
    monkeypatch.setattr(_archives, "_MAX_UNPACKED", 2**26 if case != "a large member" else 2**33)
    (tmp_path / NAME).write_bytes(gzip.compress(TARS[case](), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match=NAME):
        load("cifar10", "test", directory=tmp_path, download=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_an_idx_file_is_refused_before_memory_goes(tmp_path):
    write_idx(tmp_path, "test", *random_set(5, (28, 28, 1), 5))
    promise = bytes([0, 0, 8, 3]) + struct.pack(">III", 2**21, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(promise + bytes(10**6)))
    with pytest.raises(DataError, match="would unpack to 1,644,167,168"):
        load("mnist", "test", directory=tmp_path, download=False)


def test_an_npz_is_refused_before_memory_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(_archives, "_UNSUSPICIOUS", 2**20)
    images, labels = np.zeros((2**10, 32, 32, 3), np.uint8), np.zeros(2**10, np.int32)
    np.savez_compressed(tmp_path / "x.npz", images=images, labels=labels)
    with pytest.raises(DataError, match="would unpack to 3,145,856"):
        load(tmp_path / "x.npz")


def test_a_zipped_image_is_no_larger_than_images_are(tmp_path):
    files = {"tiny-imagenet-200/train/n01/images/x.JPEG": bytes(2**25 + 1)}
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"x\.JPEG has 33,554,433 bytes"):
        load("tiny_imagenet", directory=tmp_path, download=False)


def test_a_tar_whose_header_is_damaged_has_not_ended(tmp_path):
    """tarfile takes it for the end."""
    files = cub_files({split: [np.zeros((8, 8, 3), np.uint8)] * 3 for split in ("train", "test")})[
        0
    ]
    write_tar(tmp_path / "x.tgz", files)
    content = bytearray(gzip.decompress((tmp_path / "x.tgz").read_bytes()))
    content[content.rindex(b"classes.txt") + 2] ^= 1
    (tmp_path / "CUB_200_2011.tgz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match="no member begins at byte"):
        load("cub200", directory=tmp_path, download=False)


def test_a_pickle_cannot_number_more_objects_than_it_has_bytes(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    content = b"\x80\x02}r" + struct.pack("<I", 2**31) + b"."
    assert pickle.loads(b"\x80\x02}r" + struct.pack("<I", 3) + b".") == {}
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="more objects than it can hold"):
        load("cifar10", "test", directory=tmp_path, download=False)


def mat(packed, **values):
    from scipy.io import savemat

    out = io.BytesIO()
    savemat(out, values, do_compression=packed)
    return out.getvalue()


TABLE = np.array([(1, "n01", []), (2, "näh", [3.5, 4.0])], [("a", "O"), ("b", "O"), ("c", "O")])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            TABLE[:, None],
            [{"a": [1], "b": "n01", "c": []}, {"a": [2], "b": "näh", "c": [3.5, 4.0]}],
        ),
        (np.arange(6.0).reshape(2, 3), [0, 3, 1, 4, 2, 5]),
        (np.arange(4, dtype=np.uint8), [0, 1, 2, 3]),
        (np.array([-(2**40)]), [-(2**40)]),
        ("text", "text"),
        (np.array(["a", [1]], object), ["a", [1]]),
    ],
)
def test_matlab_files(value, expected, packed):
    assert read_mat(mat(packed, x=value, y=1), "x.mat") == {"x": expected, "y": [1]}


def packed_zeros():
    element = struct.pack("<II", 14, 2**27) + bytes(2**27)
    packed = zlib.compress(element)
    return mat(True)[:128] + struct.pack("<II", 15, len(packed)) + packed


def claim(number):
    """An array of 3 x 3 that says it has `number` x 3."""
    content = mat(False, x=np.eye(3))
    shape = struct.pack("<ii", 3, 3)
    assert content.count(shape) == 1
    return content.replace(shape, struct.pack("<ii", number, 3))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"MATLAB 7.3 MAT-file", mat(False, x=1)[:150], mat(True, x=np.eye(9))[:-9]),
        *(packed_zeros(), claim(2**30), claim(-1), b"\0" * 200),
    ],
    ids=["empty", "another version", "cut", "cut and packed", "bomb", "large", "negative", "zeros"],
)
def test_matlab_files_are_refused_before_memory_goes(content):
    tracemalloc.start()
    with pytest.raises(DataError, match=r"x\.mat"):
        read_mat(content, "x.mat")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28


@pytest.mark.parametrize("packed", [True, False])
def test_no_damage_to_a_matlab_file_takes_memory(packed):
    """`scipy.io.loadmat` ends the process at some of these."""
    content = mat(packed, x=TABLE[:, None])
    tracemalloc.start()
    for place in range(128, len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with contextlib.suppress(DataError):
                read_mat(bytes(changed), "x.mat")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
