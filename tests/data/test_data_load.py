"""Names, paths and places: what `load` finds, in which order, and what it says when it does not."""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from official_files import DEBIAN, REAL, idx_bytes, random_set, write_idx, write_images
from rcig_eqx.data import DataError, Dataset, _load, load
from rcig_eqx.data._cache import cache_folder

MD5_OF_IDX = {  # of the official files' contents, unzipped
    ("mnist", "train"): ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
    ("mnist", "test"): ("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    ("fashion_mnist", "train"): (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
    ),
    ("fashion_mnist", "test"): (
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
FOLDERS = {"mnist": REAL / "mnist", "fashion_mnist": DEBIAN}


def real(folder):
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.mark.parametrize(("name", "split"), list(MD5_OF_IDX))
def test_real_idx_sets_are_complete(name, split):
    data = load(name, split, directory=real(FOLDERS[name]), download=False)
    assert data.images.shape == ({"train": 60_000, "test": 10_000}[split], 28, 28, 1)
    arrays = data.images[..., 0], data.labels
    assert tuple(hashlib.md5(idx_bytes(a)).hexdigest() for a in arrays) == MD5_OF_IDX[name, split]
    counts = np.bincount(data.labels)
    if name == "fashion_mnist":
        assert set(counts) == {len(data) // 10}
    else:
        assert counts[1] == {"train": 6742, "test": 1135}[split]


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_real_cifar_npz(name, classes, split):
    data = load(name, split, directory=real(REAL), download=False)
    assert data.image_shape == (32, 32, 3)
    assert data.name == name
    assert set(np.bincount(data.labels, minlength=classes)) == {len(data) // classes}
    assert 0.4 < data.images.mean() / 255 < 0.55


def test_debian_package_is_found_by_itself(monkeypatch):
    monkeypatch.setattr(_load, "SYSTEM_FOLDER", real(DEBIAN).parent)
    assert len(load("fashion_mnist", "test", download=False)) == 10_000


@pytest.mark.parametrize(("asked", "folder", "found"), [
    ("mnist", "fashion_mnist", r"Fashion-MNIST \(test\)"),
    ("fashion_mnist", "mnist", r"MNIST \(test\)"),
])  # fmt: skip
def test_the_one_mnist_is_not_taken_for_the_other(asked, folder, found):
    with pytest.raises(DataError, match=f"holds the labels of {found}"):
        load(asked, "test", directory=real(FOLDERS[folder]), download=False)


@pytest.mark.parametrize(("split", "count"), [("train", 500), ("test", 100)])
def test_embedded_subset(split, count):
    data = load("fashion_mnist_small", split)
    assert data.images.shape == (10 * count, 28, 28, 1)
    assert set(np.bincount(data.labels)) == {count}
    assert data.class_names[9] == "Ankle boot"
    assert data.name == "fashion_mnist_small"


def test_embedded_subset_is_the_first_of_the_real_set():
    whole = load("fashion_mnist", "test", directory=real(DEBIAN), download=False)
    first = [np.flatnonzero(whole.labels == i)[:100] for i in range(10)]
    expected = whole.subset(np.sort(np.concatenate(first)))
    small = load("fashion_mnist_small", "test")
    np.testing.assert_array_equal(small.images, expected.images)
    np.testing.assert_array_equal(small.labels, expected.labels)


def test_embedded_files_stay_small_and_carry_their_licence():
    folder = Path(_load.__file__).parent / "embedded"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3_000_000
    assert "2017 Zalando SE" in (folder / "LICENSE-fashion-mnist.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fashion-mnist",), "no dataset 'fashion-mnist'.*Did you mean 'fashion_mnist'"),
        (("CIFAR10",), "no dataset 'CIFAR10'.*There are: mnist, fashion_mnist, cifar10, cifar100"),
        (("qqq",), "no dataset 'qqq'. There are: mnist"),
        (("mnist", "tset"), "no split 'tset'.*Did you mean 'test'.*There are: train, test"),
        (("fashion_mnist_small", "validation"), "no split 'validation'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(*arguments)


def small_mnist(folder, n, split="test"):
    images, labels = random_set(n, (28, 28, 1), 10)
    write_idx(folder, split, images, labels)


def test_places_are_searched_in_order(tmp_path, monkeypatch):
    def found():
        return len(load("mnist", "test", directory=tmp_path / "given", download=False))

    (tmp_path / "given").mkdir()
    small_mnist(cache_folder() / "mnist", 11)
    assert found() == 11
    small_mnist(_load.SYSTEM_FOLDER / "mnist", 12)
    assert found() == 12
    monkeypatch.setenv(_load.ENVIRONMENT, str(tmp_path / "environment"))
    assert found() == 12  # the folder does not exist
    small_mnist(tmp_path / "environment" / "mnist", 13)
    assert found() == 13
    small_mnist(tmp_path / "given", 14)
    assert found() == 14
    small_mnist(tmp_path / "given" / "MNIST" / "raw", 15)
    assert found() == 15
    small_mnist(tmp_path / "given" / "mnist", 16)
    assert found() == 16


def test_half_a_set_is_not_found(tmp_path):
    small_mnist(tmp_path, 10)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"MNIST \(test\) is in none of.*t10k-labels-idx1-ubyte"):
        load("mnist", "test", directory=tmp_path, download=False)


def test_directory_that_is_not_there():
    with pytest.raises(DataError, match="'/not/here' is not a folder"):
        load("mnist", directory="/not/here")


def save_npz(path, **changes):
    images, labels = random_set(6, (5, 4, 3), 2)
    np.savez(path, **({"images": images, "labels": labels} | changes))
    return images


def test_npz_path(tmp_path):
    images = save_npz(tmp_path / "mine.npz", class_names=np.array(["cat", "dog"]))
    for path in (tmp_path / "mine.npz", str(tmp_path / "mine.npz")):
        data = load(path)
        np.testing.assert_array_equal(data.images, images)
        assert (data.class_names, data.name) == (("cat", "dog"), "mine")
    with pytest.raises(ValueError, match="one split, so split='test'"):
        load(tmp_path / "mine.npz", "test")


def test_folder_of_npz_splits(tmp_path):
    save_npz(tmp_path / "train.npz")
    images = save_npz(tmp_path / "test.npz", images=np.ones((6, 5, 4, 3), np.float32))
    assert images.dtype == np.uint8
    assert load(tmp_path).images.dtype == np.uint8
    data = load(tmp_path, "test")
    assert data.images.dtype == np.float32
    assert data.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([None] * 6)}, "plain arrays.*Object arrays"),
        ({"labels": np.arange(5)}, "6 images but labels have shape"),
        ({"images": np.zeros((6, 5, 4), np.uint8)}, r"images\[\.\.\., None\]"),
        ({"class_names": np.array(["one"])}, "there are 1 class_names"),
        ({"class_names": np.array("cat")}, "class_names is 'cat'"),
        ({"class_names": np.array([1, 2])}, "class_names holds 1"),
    ],
)
def test_npz_of_the_wrong_content(tmp_path, changes, message):
    save_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "mine.npz")
    assert str(tmp_path / "mine.npz") in str(caught.value)


def test_damaged_npz(tmp_path):
    file = tmp_path / "mine.npz"
    save_npz(file)
    content = file.read_bytes()
    for damaged in (
        content[:-40],
        content[:100],
        b"",
        b"hello",
        content.replace(b"NUMPY", b"DUMPY"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as"):
            load(file)
    np.savez(file, images=np.zeros((1, 1, 1, 1), np.uint8))
    with pytest.raises(DataError, match="labels"):
        load(file)


def test_npz_of_bytes_and_text(tmp_path):
    save_npz(tmp_path / "mine.npz", class_names=np.array([b"cat", b"dog"]))
    assert load(tmp_path / "mine.npz").class_names == ("cat", "dog")
    save_npz(tmp_path / "mine.npz", labels=np.array(["dog", "cat"] * 3))
    data = load(tmp_path / "mine.npz")
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [1, 0] * 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_damaged_byte_of_an_npz_is_refused_or_harmless(tmp_path, save):
    file = tmp_path / "mine.npz"
    images, labels = random_set(4, (3, 2, 1), 2)
    save(file, images=images, labels=labels.astype(np.int64), class_names=np.array(["cat", "dog"]))
    content, flips = file.read_bytes(), np.random.default_rng(0).integers(1, 256, 2000)
    refused = 0
    for place in range(len(content)):
        damaged = bytes([content[place] ^ int(flips[place])])
        file.write_bytes(content[:place] + damaged + content[place + 1 :])
        try:
            data = load(file)
        except DataError:
            refused += 1
            continue
        np.testing.assert_array_equal(data.images, images)
        np.testing.assert_array_equal(data.labels, labels)
        assert data.class_names == ("cat", "dog")
    assert refused > len(content) / 2


def test_npz_of_an_official_name_must_be_that_set(tmp_path):
    names = np.array([f"c{i}" for i in range(10)])
    images, labels = random_set(10, (28, 28, 1), 10)
    np.savez(tmp_path / "train.npz", images=images, labels=labels, class_names=names)
    with pytest.raises(DataError, match="not MNIST"):
        load("mnist", directory=tmp_path, download=False)


def test_missing_paths(tmp_path):
    for path in (tmp_path / "x.npz", tmp_path / "x", str(tmp_path / "x"), "x.npz"):
        with pytest.raises(DataError, match="check the path"):
            load(path)


def test_folder_of_images_by_split(tmp_path):
    arrays = write_images(tmp_path / "train", {"cat": 3, "dog": 2})
    write_images(tmp_path / "val", {"cat": 1, "dog": 1})
    data = load(tmp_path)
    assert isinstance(data, Dataset)
    np.testing.assert_array_equal(data.images, np.concatenate([arrays["cat"], arrays["dog"]]))
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.class_names == ("cat", "dog")
    assert len(load(tmp_path, "val")) == 2
    with pytest.raises(ValueError, match="no split 'test': it has train, val"):
        load(tmp_path, "test")


def test_folder_of_images_of_one_split(tmp_path):
    write_images(tmp_path, {"cat": 3, "train": 2}, mode="L")  # a class may be called "train"
    (tmp_path / "cat" / ".ipynb_checkpoints").mkdir()
    data = load(os.fspath(tmp_path))
    assert data.images.shape == (5, 6, 5, 1)
    assert data.class_names == ("cat", "train")
    with pytest.raises(ValueError, match="no split 'test': it has images of one split"):
        load(tmp_path, "test")


def beside_nothing(folder):
    pass


def of_a_mac(folder):
    (folder / "__MACOSX" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "cat" / "._000.png").write_bytes(b"x")


def below_a_class(folder):
    write_images(folder / "cat" / "originals", {"raw": 1})


def notes(folder):
    (folder / "README.txt").write_text("x")


@pytest.mark.parametrize("more", [beside_nothing, of_a_mac, below_a_class, notes])
@pytest.mark.parametrize("split", ["", "train"])
def test_what_lies_beside_the_classes_is_no_split(split, more, tmp_path):
    write_images(tmp_path / split, {"cat": 3, "dog": 2})
    more(tmp_path / split)
    if split:
        notes(tmp_path)
        of_a_mac(tmp_path)
    with warnings.catch_warnings(action="ignore"):  # ImageFolder may name what it passes over
        data = load(tmp_path)
    assert (data.class_names, len(data)) == (("cat", "dog"), 5)


def test_paths_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    small_mnist(tmp_path / "sets" / "mnist", 11)
    save_npz(tmp_path / "mine.npz")
    assert len(load("mnist", "test", directory="~/sets", download=False)) == 11
    assert len(load("~/mine.npz")) == 6
    monkeypatch.setenv(_load.ENVIRONMENT, "~/sets")
    assert len(load("mnist", "test", download=False)) == 11
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert cache_folder() == tmp_path / "cache" / "rcig_eqx"


def test_without_a_home(tmp_path, monkeypatch):
    """As in a container whose user has no entry in the table of users."""
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nowhere(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    for call in (
        lambda: load("mnist", download=False),
        lambda: load("~/mine.npz"),
        lambda: load("mnist", directory="~/sets"),
    ):
        with pytest.raises(ValueError, match="home folder"):
            call()
