"""Sets of PyTorch, lists of pairs, tensors and `DatasetDict`, and objects of the same protocol."""

import types
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data_adapt import HuggingFaceSet

from official_files import random_pixels
from rcig_eqx.data import (
    DataError,
    Dataset,
    ImageFolder,
    adapt,
    hold_out,
    resize,
    sample,
    stream,
    write_records,
)
from rcig_eqx.data._adapt import as_images

PIXELS = random_pixels(9, (8, 6))
LABELS = np.arange(9) % 3
NAMES = ["cat", "dog", "ox"]


class Tensor:
    """What is used of a tensor."""

    def __init__(self, array):
        self.array, self.dtype = array, f"torch.{array.dtype}"

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return Tensor(self.array[index])

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array

    def tolist(self):
        return self.array.tolist()


Tensor.__module__ = "torch"
LIKE_TORCH: Any = types.SimpleNamespace(
    tensor=lambda x: Tensor(np.asarray(x)),
    utils=types.SimpleNamespace(data=types.SimpleNamespace(Dataset=object)),
)


@pytest.fixture(params=["like", "real"])
def torch(request):
    return LIKE_TORCH if request.param == "like" else pytest.importorskip("torch")


def planes(image):
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


KINDS = {
    "pillow": lambda torch, x: Image.fromarray(x),
    "array": lambda torch, x: x,
    "tensor": lambda torch, x: torch.tensor(planes(x)),
    "float tensor": lambda torch, x: torch.tensor(planes(x).astype(np.float32) / 255),
}


def pairs_of(torch, kind, labels=LABELS, pixels=PIXELS, **attributes) -> Any:
    """A map-style data set that counts what is read."""

    def read(self, index):
        if not 0 <= index < len(pixels):
            raise IndexError(index)
        self.reads += 1
        return KINDS[kind](torch, pixels[index]), labels[index]

    methods = {"__getitem__": read, "__len__": lambda self: len(pixels), "reads": 0}
    return type("Pets", (torch.utils.data.Dataset,), methods | attributes)()


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_of_pytorch_is_a_set_on_disk(torch, kind, tmp_path):
    data = pairs_of(torch, kind, classes=NAMES)
    images: Any = as_images(data)
    assert (images.name, images.class_names, len(images)) == ("Pets", tuple(NAMES), 9)
    np.testing.assert_array_equal(images.labels, LABELS)
    scale = 255 if kind == "float tensor" else 1
    for i in range(9):
        np.testing.assert_allclose(images[i][0], PIXELS[i] / scale, rtol=1e-6)
    assert images[0][0].dtype == (np.float32 if scale == 255 else np.uint8)
    some, labels = next(stream(data, 9, seed=0))
    assert some.shape == (9, 8, 6, 3)
    assert sorted(labels.tolist()) == sorted(LABELS.tolist())
    assert len(sample(data, 6, at_least=1, seed=0)) == 6
    records = write_records(data, tmp_path / "x", progress=False)
    np.testing.assert_array_equal(records[4][0], images[4][0])


def test_a_list_of_pairs_with_text_labels():
    data = [(Image.fromarray(x), NAMES[y]) for x, y in zip(PIXELS, LABELS, strict=True)]
    images = as_images(data)
    assert (images.class_names, images.name) == (("cat", "dog", "ox"), "custom")
    np.testing.assert_array_equal(images.labels, LABELS)
    small = adapt(data, size=4, channels=1)
    assert small.image_shape == (4, 4, 1)
    np.testing.assert_array_equal(adapt(data, size=4)[2][0], resize(PIXELS[2], 4))


def test_labels_that_a_set_keeps_are_not_read_one_by_one(torch):
    labels, pixels = np.tile(LABELS, 4), PIXELS * 4
    data = pairs_of(torch, "array", labels, pixels, targets=torch.tensor(labels))
    np.testing.assert_array_equal(as_images(data).labels, labels)
    assert data.reads < 9  # to see what it is, and three labels compared
    other = pairs_of(torch, "array", labels, pixels, targets=[7] * 36)  # not what it gives
    np.testing.assert_array_equal(as_images(other).labels, labels)
    assert other.reads >= 36


def test_a_part_of_a_data_set(torch):
    whole = pairs_of(torch, "pillow", classes=NAMES, targets=LABELS.tolist())
    part = pairs_of(torch, "pillow", LABELS[3:7], PIXELS[3:7], dataset=whole, indices=range(3, 7))
    images = as_images(part)
    assert (images.name, images.class_names) == ("Pets", tuple(NAMES))
    np.testing.assert_array_equal(images.labels, LABELS[3:7])
    assert whole.reads == 0


def test_float_images_change_their_channels():
    color = [(x.astype(np.float32) / 255, 0) for x in PIXELS]
    gray = adapt(color, channels=1)[0][0]
    of_pillow = np.asarray(Image.fromarray(PIXELS[0]).convert("L")) / 255
    np.testing.assert_allclose(gray[..., 0], of_pillow, atol=1 / 255)
    assert adapt([(gray, 0)], channels=3)[0][0].shape == (8, 6, 3)


def test_parts_and_loaders_of_pytorch_itself():
    torch = pytest.importorskip("torch")
    data = pairs_of(torch, "tensor", classes=NAMES)
    part = torch.utils.data.Subset(data, [8, 0, 1])
    assert as_images(part).labels.tolist() == [2, 0, 1]
    assert as_images(part).class_names == tuple(NAMES)
    with pytest.warns(UserWarning, match="DataLoader was passed: its dataset is taken"):
        images: Any = as_images(torch.utils.data.DataLoader(part, 2, shuffle=True))
    np.testing.assert_array_equal(images[0][0], PIXELS[8])


def test_a_loader_stands_for_its_data_set():
    loader = types.SimpleNamespace(dataset=pairs_of(LIKE_TORCH, "array"), batch_sampler=None)
    with pytest.warns(UserWarning, match="its dataset is taken, in batches of our own"):
        assert len(as_images(loader)) == 9


def test_tensors_are_turned_by_their_type(torch):
    whole = np.stack(PIXELS)
    images = torch.tensor(np.ascontiguousarray(np.moveaxis(whole, -1, 1)))
    made = Dataset.from_arrays(images, torch.tensor(LABELS))
    np.testing.assert_array_equal(made.images, whole)
    np.testing.assert_array_equal(made.labels, LABELS)
    some, labels = next(stream((images, torch.tensor(LABELS)), 9, seed=0))
    order = [int(np.flatnonzero((whole == x).all((1, 2, 3)))[0]) for x in some]
    np.testing.assert_array_equal(labels, LABELS[order])
    gray = Dataset.from_arrays(torch.tensor(whole[..., 0]), LABELS)
    assert gray.image_shape == (8, 6, 1)
    last = Dataset.from_arrays(torch.tensor(whole), LABELS)  # [n h w c] already
    np.testing.assert_array_equal(last.images, whole)
    rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    np.testing.assert_array_equal(Dataset.from_arrays(torch.tensor(rows), LABELS).images, rows)
    with pytest.raises(ValueError, match=r"looks like \[n c h w\]"):  # an array is not
        Dataset.from_arrays(np.moveaxis(whole, -1, 1), LABELS)


def test_the_right_one_of_several_splits():
    splits = {"train": HuggingFaceSet(PIXELS), "validation": HuggingFaceSet(PIXELS[:4])}
    assert len(as_images(splits)) == 9
    assert len(as_images(splits, "test")) == 4
    assert len(as_images(splits | {"test": HuggingFaceSet(PIXELS[:2])}, "test")) == 2
    assert len(as_images({"all": HuggingFaceSet(PIXELS[:5])}, "test")) == 5
    two = {"a": HuggingFaceSet(PIXELS), "b": HuggingFaceSet(PIXELS)}
    with pytest.raises(ValueError, match="no split 'train': pass one of its splits, a, b"):
        as_images(two)


def test_text_labels_are_numbered_in_every_form(tmp_path):
    words = np.array(NAMES)[LABELS]
    images = np.stack(PIXELS)
    for data in ((images, words), (images, words.tolist()), (images, words.astype(object))):
        assert as_images(data).class_names == tuple(NAMES)
        np.testing.assert_array_equal(as_images(data).labels, LABELS)
        _, labels = next(stream(data, 9, seed=0))
        assert sorted(labels.tolist()) == sorted(LABELS.tolist())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(np.zeros((4, 4), np.int64), 0)] * 2, "image 0 of custom is int64"),
        ([(np.zeros(4, np.float32), 0)] * 2, r"image 0 of custom is float32 \(4,\)"),
        ([(np.zeros((4, 4), np.uint8), [0, 1])] * 2, "the second of the pairs of custom holds"),
        ([(np.zeros((4, 4), np.uint8), 0.5)] * 2, "float64 from 0.5: it must be one class"),
    ],
)
def test_pairs_that_cannot_be_used_are_named(data, message):
    with pytest.raises(DataError, match=message):
        _ = as_images(data).labels


def test_floats_are_not_resized():
    data = [(np.zeros((8, 6, 3), np.float32), i % 2) for i in range(4)]
    with pytest.raises(DataError, match="only uint8 is brought to a size"):
        adapt(data, size=4)


HELD_OUT = {
    "pair": lambda folder: (np.stack(PIXELS * 4), np.tile(LABELS, 4)),
    "folder": ImageFolder,
    "records": lambda folder: write_records(
        ImageFolder(folder), folder.parent / "records", progress=False
    ),
    "hugging face": lambda folder: HuggingFaceSet(PIXELS),
    "pairs": lambda folder: pairs_of(LIKE_TORCH, "array"),
    "splits": lambda folder: {"train": HuggingFaceSet(PIXELS)},
}


@pytest.mark.parametrize("kind", HELD_OUT)
def test_a_part_of_each_class_is_held_out_of_any_set(kind, tmp_path, monkeypatch):
    for i, x in enumerate(PIXELS * 4):
        place = tmp_path / "pets" / NAMES[LABELS[i % 9]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(place / f"{i:02}.png")
    data: Any = HELD_OUT[kind](tmp_path / "pets")
    whole = as_images(data)
    if not isinstance(whole, Dataset):
        monkeypatch.setattr(type(whole), "image", lambda *_: pytest.fail("an image was read"))
    train, held = hold_out(data, 0.25, seed=0)
    each = len(whole) // 3
    assert np.bincount(held.labels).tolist() == [max(1, round(0.25 * each))] * 3
    assert len(train) + len(held) == len(whole)
    monkeypatch.undo()
    again = hold_out(data, 0.25, seed=0)[1]
    assert (held.class_names, held.image_shape) == (whole.class_names, whole.image_shape)
    if isinstance(held, Dataset):
        np.testing.assert_array_equal(held.images, again.images)
        return
    assert isinstance(train, type(held))
    images, labels = held.gather(range(len(held)))
    np.testing.assert_array_equal(images, again.read().images)
    np.testing.assert_array_equal(labels, held.labels)
    assert list(train.marks) != list(held.marks) == list(again.marks)
    other = hold_out(data, 0.25, seed=1)[1]
    assert list(other.marks) != list(held.marks)


def test_one_image_of_a_small_class_is_held_out():
    labels = np.array([0] * 20 + [1] * 2)
    images = np.zeros((22, 4, 4, 1), np.uint8)
    _, held = hold_out((images, labels), 0.2, seed=0)
    assert np.bincount(held.labels).tolist() == [4, 1]
    with pytest.raises(ValueError, match="1 images of '1' leaves none on one side"):
        hold_out((images[:21], labels[:21]), 0.2, seed=0)
