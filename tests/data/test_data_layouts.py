"""Small archives in the layouts of Tiny-ImageNet, CUB, Imagenette and ImageWoof: whole, damaged."""

import dataclasses
import tarfile

import numpy as np
import pytest

from official_files import (
    TINY_WORDS,
    cub_files,
    imagenette_files,
    png,
    random_pixels,
    tiny_imagenet_files,
    write_files,
)
from rcig_eqx.data import DataError, _load, load, resize
from rcig_eqx.data._layouts import IMAGENETTE_CLASSES, IMAGEWOOF_CLASSES

SETS = {  # archive, its form, size, images a split, files
    "tiny_imagenet": ("tiny-imagenet-200.zip", "zip", 64, 8, tiny_imagenet_files),
    "cub200": ("CUB_200_2011.tgz", "tgz", 32, 6, cub_files),
    "imagenette": (
        "imagenette2-160.tgz",
        "tgz",
        128,
        20,
        lambda pixels: imagenette_files(pixels, "imagenette2-160", list(IMAGENETTE_CLASSES)),
    ),
    "imagewoof": (
        "imagewoof2-160.tgz",
        "tgz",
        128,
        20,
        lambda pixels: imagenette_files(pixels, "imagewoof2-160", list(IMAGEWOOF_CLASSES)),
    ),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sets of a few images are whole, if they have as many as these."""
    for name, (_, _, _, count, _) in SETS.items():
        source = dataclasses.replace(_load.SOURCES[name], counts={"train": count, "test": count})
        monkeypatch.setitem(_load.SOURCES, name, source)


def make(name, *sizes):
    """Files of a set, and `{split: (images, labels)}` they hold, sorted by class and number."""
    _, _, size, count, files_of = SETS[name]
    sizes = sizes or ((size, size),)
    pixels = {s: random_pixels(count, *sizes, seed=i) for i, s in enumerate(("train", "test"))}
    return *files_of(pixels), pixels


def by_content(images, labels):
    """The images of each class as a set of bytes: which order they come in is another test's."""
    return {c: {i.tobytes() for i in images[labels == c]} for c in np.unique(labels)}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", ["archive", "reversed", "folder", "the folder itself"])
def test_images_and_labels(name, form, tmp_path):
    archive, kind, size, count, _ = SETS[name]
    files, labels, pixels = make(name)
    if form == "reversed":  # tables after the images they are of, or before
        files = dict(reversed(files.items()))
    if form.endswith(("folder", "itself")):
        write_files(tmp_path, files, "folder")
    else:
        write_files(tmp_path / archive, files, kind)
    inner = next(iter(files)).split("/")[0]
    directory = tmp_path / inner if form == "the folder itself" else tmp_path
    for split in ("train", "test"):
        data = load(name, split, directory=directory, download=False)
        assert (data.images.shape, data.images.dtype) == ((count, size, size, 3), np.uint8)
        expected = by_content(np.stack(pixels[split]), labels[split])
        assert by_content(data.images, data.labels) == expected
        assert data.name == name


@pytest.mark.parametrize("name", SETS)
def test_every_form_has_one_order(name, tmp_path):
    archive, kind, _, _, _ = SETS[name]
    files, _, _ = make(name)
    write_files(tmp_path / "a" / "x", files, "folder")
    (tmp_path / "b").mkdir()
    write_files(tmp_path / "b" / archive, dict(reversed(files.items())), kind)
    folder = load(name, directory=tmp_path / "a" / "x", download=False)
    packed = load(name, directory=tmp_path / "b", download=False)
    np.testing.assert_array_equal(folder.images, packed.images)
    np.testing.assert_array_equal(folder.labels, packed.labels)


def test_class_names(tmp_path):
    for name, (archive, kind, *_) in SETS.items():
        write_files(tmp_path / archive, make(name)[0], kind)
    names = {name: load(name, directory=tmp_path, download=False).class_names for name in SETS}
    wnids = list(TINY_WORDS)
    assert names["tiny_imagenet"] == (
        "Egyptian cat", "scorpion", f"crane ({wnids[2]})", f"crane ({wnids[3]})"
    )  # fmt: skip
    assert names["cub200"] == (
        "Black footed Albatross", "Laysan Albatross", "Red winged Blackbird"
    )  # fmt: skip
    assert names["imagenette"][:2] == ("tench", "English springer")
    assert names["imagewoof"][-1] == "dingo"
    assert all(len(names[name]) == 10 for name in ("imagenette", "imagewoof"))


def test_images_of_other_sizes_are_resized_and_cropped(tmp_path):
    files, labels, pixels = make("cub200", (40, 50), (70, 35), (20, 20))
    write_files(tmp_path / "CUB_200_2011.tgz", files, "tgz")
    data = load("cub200", directory=tmp_path, download=False)
    expected = np.stack([resize(image, 32) for image in pixels["train"]])
    assert by_content(data.images, data.labels) == by_content(expected, labels["train"])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def web_page(path):
    path.write_bytes(b"<html>404 Not Found</html>" * 40)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fault", [cut, flip_a_byte, empty, web_page])
def test_damaged_archives_are_named(name, fault, tmp_path):
    archive, kind, _, _, _ = SETS[name]
    write_files(tmp_path / archive, make(name)[0], kind)
    fault(tmp_path / archive)
    with pytest.raises(DataError, match=archive):
        load(name, directory=tmp_path, download=False)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("tiny_imagenet", {"wnids.txt": None}, r"lacks wnids\.txt"),
    ("tiny_imagenet", {"wnids.txt": b"n00000001"}, "do not fit together.*n0"),
    ("tiny_imagenet", {"wnids.txt": b"\n".join([w.encode() for w in TINY_WORDS] + [b"n00001740"])},
     "no train images of 'entity'"),
    ("tiny_imagenet", {"train/n02124075/images/n02124075_0.JPEG": None}, "holds 7 images.*of 8"),
    ("tiny_imagenet", {"train/n02124075/images/n02124075_0.JPEG": b"cut"},
     r"n02124075_0\.JPEG cannot be read as an image"),
    ("tiny_imagenet", {"words.txt": b"\xff"}, r"words\.txt is truncated or damaged"),
    ("cub200", {"train_test_split.txt": None}, r"lacks train_test_split\.txt"),
    ("cub200", {"train_test_split.txt": b"1 1\n2 1"}, "of different images"),
    ("cub200", {"classes.txt": b"1 001.A\n2 002.B"}, "do not fit together"),
    ("cub200", {"images/001.Black_footed_Albatross/train_0.jpg": None},
     r"lacks 1 images, the first images/001.Black_footed_Albatross/train_0\.jpg"),
    ("imagenette", {"train/n01440764/n01440764_0.JPEG": None,
                    "train/n01440764/n01440764_1.JPEG": None}, "no train images of 'tench'"),
    ("imagenette", {"train/n09999999/x.JPEG": png(np.zeros((4, 4, 3), np.uint8))},
     "do not fit together.*n09999999"),
])  # fmt: skip
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_incomplete_sets_are_refused(name, change, message, form, tmp_path):
    archive, kind, *_ = SETS[name]
    files, _, _ = make(name)
    inner = next(iter(files)).split("/")[0]
    files |= {f"{inner}/{file}": data for file, data in change.items()}
    files = {file: data for file, data in files.items() if data is not None}
    place, form = (tmp_path, "folder") if form == "folder" else (tmp_path / archive, kind)
    write_files(place, files, form)
    with pytest.raises(DataError, match=message):
        load(name, directory=tmp_path, download=False)


@pytest.mark.parametrize("member", ["../evil.JPEG", "/tmp/evil.JPEG", "a/../../evil", "..\\evil"])
@pytest.mark.parametrize("name", ["tiny_imagenet", "cub200"])
def test_members_that_point_outside_are_refused(name, member, tmp_path):
    archive, kind, *_ = SETS[name]
    write_files(tmp_path / archive, make(name)[0] | {member: b"x"}, kind)
    with pytest.raises(DataError, match="outside of it: not the official archive"):
        load(name, directory=tmp_path, download=False)


def test_links_in_a_tar_are_not_followed(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(png(np.zeros((32, 32, 3), np.uint8)))
    files, _, _ = make("cub200")
    lost = "CUB_200_2011/images/001.Black_footed_Albatross/train_0.jpg"
    del files[lost]
    write_files(tmp_path / "x.tar", files, "tar")
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        link = tarfile.TarInfo(lost)
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
        archive.addfile(link)
    (tmp_path / "x.tar").rename(tmp_path / "CUB_200_2011.tgz")
    with pytest.raises(DataError, match="lacks 1 images"):
        load("cub200", directory=tmp_path, download=False)
