"""Every official layout read back exactly, and every kind of damage refused by name."""

import gzip
import os
import pickle

import numpy as np
import pytest

from official_files import cifar_files, idx_bytes, random_set, write_cifar, write_idx, write_tar
from rcig_eqx.data import DataError, load

CIFAR_CASES = [
    (name, form, archive)
    for name in ("cifar10", "cifar100")
    for form in ("binary", "python2", "python3")
    for archive in (False, True)
]


def assert_same(dataset, images, labels):
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.images.dtype == np.uint8


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_idx(tmp_path, name, split, gz):
    images, labels = random_set(12, (28, 28, 1), 10)
    write_idx(tmp_path, split, images, labels, gz=gz)
    data = load(name, split, directory=tmp_path, download=False)
    assert_same(data, images, labels)
    assert (data.name, data.num_classes) == (name, 10)


@pytest.mark.parametrize("place", ["{0}", "{0}.gz", "{1}", "{1}.gz", "{0}/{0}", "{1}/{1}"])
def test_idx_under_the_names_that_tools_give(tmp_path, place):
    images, labels = random_set(12, (28, 28, 1), 10)
    write_idx(tmp_path / "x", "train", images, labels, gz=place.endswith("gz"))
    for file in (tmp_path / "x").iterdir():
        name = file.name.removesuffix(".gz")
        target = tmp_path / "mnist" / place.format(name, name.replace("-idx", ".idx"))
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    assert_same(load("mnist", directory=tmp_path, download=False), images, labels)


@pytest.mark.parametrize(("name", "form", "archive"), CIFAR_CASES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar(tmp_path, name, form, archive, split):
    images, labels = random_set(15, (32, 32, 3), 10 if name == "cifar10" else 100)
    write_cifar(tmp_path, name, form, split, images, labels, archive=archive)
    data = load(name, split, directory=tmp_path, download=False)
    assert_same(data, images, labels)
    assert data.num_classes == {"cifar10": 10, "cifar100": 100}[name]


@pytest.mark.parametrize(("name", "form", "inner"), [
    ("cifar10", "binary", "cifar-10-batches-bin"),
    ("cifar100", "python2", "cifar-100-python"),
])  # fmt: skip
def test_directory_may_be_the_extracted_folder(tmp_path, name, form, inner):
    images, labels = random_set(10, (32, 32, 3), 10)
    write_cifar(tmp_path, name, form, "train", images, labels, archive=False)
    assert_same(load(name, directory=tmp_path / inner, download=False), images, labels)


def test_npz_of_a_split(tmp_path):
    images, labels = random_set(8, (28, 28, 1), 10)
    np.savez(tmp_path / "test.npz", images=images, labels=labels.astype(np.int64))
    assert_same(load("mnist", "test", directory=tmp_path, download=False), images, labels)


GOOD = idx_bytes(random_set(6, (28, 28, 1), 10)[0][..., 0])
PACKED = gzip.compress(GOOD, mtime=0)  # the same in every process: it is part of a test's name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PACKED[:-9], "truncated or damaged"),
        (PACKED[:40], "truncated or damaged"),
        (PACKED[:60] + b"damage" + PACKED[66:], "truncated or damaged"),
        (GOOD[:-1], "4719 bytes.*promises 4720"),
        (GOOD + b"\0", "4721 bytes.*promises 4720"),
        (GOOD[:10], "inside its header"),
        (b"", "not an IDX"),
        (b"<html>404</html>", "not an IDX"),
        (bytes([0, 0, 0x0D]) + GOOD[3:], "not an IDX file of unsigned bytes.*00 00 0d 03"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "promises 79228162458924105385300197391"),
        (idx_bytes(np.zeros(6, np.uint8)), "not one label an image"),
        (idx_bytes(np.zeros((5, 28, 28), np.uint8)), "not one label an image"),
    ],
)
def test_bad_idx_is_named(tmp_path, content, message):
    write_idx(tmp_path, "train", *random_set(6, (28, 28, 1), 10))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load("mnist", directory=tmp_path, download=False)
    assert str(file) in str(caught.value)


def test_idx_of_another_shape_is_refused(tmp_path):
    write_idx(tmp_path, "train", *random_set(4, (32, 32, 1), 10))
    with pytest.raises(DataError, match=r"\(32, 32, 1\).*not MNIST"):
        load("mnist", directory=tmp_path, download=False)


def test_label_out_of_range_is_refused(tmp_path):
    images, labels = random_set(10, (32, 32, 3), 11)
    write_cifar(tmp_path, "cifar10", "binary", "test", images, labels[::-1].copy(), archive=False)
    load("cifar10", "test", directory=tmp_path, download=False)
    write_cifar(tmp_path, "cifar10", "binary", "test", images, labels + 1, archive=False)
    with pytest.raises(DataError, match="labels reach 10"):
        load("cifar10", "test", directory=tmp_path, download=False)


def test_cifar_binary_of_partial_record(tmp_path):
    write_cifar(tmp_path, "cifar100", "binary", "test", *random_set(3, (32, 32, 3), 3),
                archive=False)  # fmt: skip
    file = tmp_path / "cifar-100-binary" / "test.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test\.bin holds 9221 bytes.*3074-byte records"):
        load("cifar100", "test", directory=tmp_path, download=False)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_truncated_archive(tmp_path, keep):
    write_cifar(tmp_path, "cifar10", "binary", "train", *random_set(50, (32, 32, 3), 10),
                archive=True)  # fmt: skip
    file = tmp_path / "cifar-10-binary.tar.gz"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz.*truncated.*get it again"):
        load("cifar10", directory=tmp_path, download=False)


def test_archive_without_a_batch_is_not_half_loaded(tmp_path):
    files = cifar_files("cifar10", "binary", "train", *random_set(10, (32, 32, 3), 10))
    del files["data_batch_3.bin"]
    write_tar(tmp_path / "cifar-10-binary.tar.gz",
              {f"cifar-10-batches-bin/{f}": data for f, data in files.items()})  # fmt: skip
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/data_batch_3\.bin"):
        load("cifar10", directory=tmp_path, download=False)


class Runs:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (Runs(os.system, "touch ran"), r"posix\.system|nt\.system"),
        (Runs(eval, "open('ran', 'w')"), r"__builtin__\.eval|builtins\.eval"),
        (Runs(np.load, "x.npy"), r"load"),
        (np.float64(1.0), "scalar"),
        (Runs, "official_files|test_data_formats"),
        (np.zeros(3, np.float32), "other than unsigned bytes"),
        (np.array([None]), "other than unsigned bytes"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_asks_for_anything_else_is_refused(
    tmp_path, monkeypatch, hidden, message, protocol
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    content = {b"data": hidden, b"fine_labels": [0]}
    (folder / "test").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match=f"refused as a pickle of an image set.*({message})"):
        load("cifar100", "test", directory=tmp_path, download=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "list, not a dictionary"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "does not hold `data`"),
        ({b"data": np.zeros((2, 3000), np.uint8), b"labels": [0, 1]}, "does not hold `data`"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 300]}, "does not hold `data`"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, "1"]}, "does not hold `data`"),
        ({b"data": [1, 2], b"labels": [0, 1]}, "does not hold `data`"),
    ],
)
def test_pickle_of_the_wrong_content(tmp_path, content, message):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message) as caught:
        load("cifar10", "test", directory=tmp_path, download=False)
    assert str(folder / "test_batch") in str(caught.value)


def test_truncated_pickle(tmp_path):
    write_cifar(tmp_path, "cifar10", "python2", "test", *random_set(3, (32, 32, 3), 3),
                archive=False)  # fmt: skip
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match="refused as a pickle"):
        load("cifar10", "test", directory=tmp_path, download=False)


def test_fortran_ordered_pickle(tmp_path):
    images, labels = random_set(4, (32, 32, 3), 4)
    planes = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(4, -1))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = {b"data": planes, b"labels": labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    assert_same(load("cifar10", "test", directory=tmp_path, download=False), images, labels)
