"""Sets of Hugging Face `datasets` and TFDS, and objects of the same protocol."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from official_files import png, random_pixels
from rcig_eqx.data import DataError, ImageFolder, adapt, resize, sample, stream, write_records

PIXELS = random_pixels(9, (6, 4))
LABELS = np.arange(9) % 3
NAMES = ("cat", "dog", "ox")


@dataclasses.dataclass
class ClassLabel:
    names: Any = None
    num_classes: int | None = None


class FeaturesOfTfds:
    """A mapping in all but name."""

    def __init__(self, **features):
        self.features = features

    def keys(self):
        return self.features.keys()

    def __getitem__(self, name):
        return self.features[name]


class TfdsSource:
    """The protocol of `tfds.data_source`."""

    def __init__(self, images=PIXELS, names: Any = NAMES, labels: Any = LABELS):
        self.images, self.own_labels = images, labels
        label = ClassLabel(list(names), 3) if names else None
        features = FeaturesOfTfds(image=None, label=label, id=None)
        info = {"features": features, "name": "pets"}
        self.dataset_info = type("Info", (), info)()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": self.own_labels[index], "id": index}


class HuggingFaceSet:
    """The protocol of `datasets.Dataset`, images as pillow has them."""

    def __init__(self, images=PIXELS, label=None, columns=("img", "label")):
        self.rows = [
            dict(zip(columns, (Image.fromarray(x) if isinstance(x, np.ndarray) else x, int(y)),
                     strict=True))
            for x, y in zip(images, LABELS, strict=False)
        ]  # fmt: skip
        self.features = dict(zip(columns, (None, label or ClassLabel(list(NAMES))), strict=True))
        self.info = type("Info", (), {"dataset_name": "pets"})()
        self._fingerprint = "a1b2"

    def select_columns(self, column):
        return self

    def with_format(self, kind):
        return self

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return {name: np.array([row[name] for row in self.rows]) for name in ("label",)}
        return self.rows[index]


def real_hugging_face():
    datasets = pytest.importorskip("datasets", reason="pip install 'rcig-eqx[hf]'")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES))
    )
    rows = {"image": [Image.fromarray(x) for x in PIXELS], "label": LABELS.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


SETS = {
    "tfds": TfdsSource,
    "hugging face": HuggingFaceSet,
    "hugging face, encoded": lambda: HuggingFaceSet([png(x) for x in PIXELS]),
    "hugging face, bytes": lambda: HuggingFaceSet(
        [{"bytes": png(x), "path": None} for x in PIXELS]
    ),
    "hugging face itself": real_hugging_face,
}


@pytest.fixture(params=SETS)
def foreign(request):
    return SETS[request.param]()


def test_what_it_is(foreign):
    images = adapt(foreign)
    assert images.class_names == NAMES
    assert (len(images), images.image_shape, images.num_classes) == (9, (6, 4, 3), 3)
    np.testing.assert_array_equal(images.labels, LABELS)
    image, label = images[4]
    np.testing.assert_array_equal(image, PIXELS[4])
    assert label == LABELS[4]
    np.testing.assert_array_equal(images.read().images, PIXELS)
    small = adapt(foreign, size=4, name="mine")
    assert (small.image_shape, small.name) == ((4, 4, 3), "mine")
    np.testing.assert_array_equal(small[2][0], resize(PIXELS[2], 4))


def test_it_is_streamed_sampled_and_written_as_it_is(foreign, tmp_path):
    images, labels = next(stream(foreign, 9, seed=0))
    order = [int(np.flatnonzero((np.stack(PIXELS) == x).all((1, 2, 3)))[0]) for x in images]
    assert sorted(order) == list(range(9))
    np.testing.assert_array_equal(labels, LABELS[order])
    assert sample(foreign, 9, at_least=1, seed=0).class_names == NAMES
    records = write_records(foreign, tmp_path / "x", progress=False)
    np.testing.assert_array_equal(records.read().images, PIXELS)
    assert records.class_names == NAMES


def test_names_of_columns_and_classes():
    data: Any = HuggingFaceSet(columns=("picture", "kind"), label=ClassLabel(None, 4))
    data.__getitem__ = None
    with pytest.raises(ValueError, match=r"none of image, img.*adapt\(dataset, image=.*picture, k"):
        adapt(data)
    with pytest.raises(ValueError, match=r"no 'color'.*of picture, kind"):
        adapt(data, image="picture", label="color")
    images = adapt(data, image="picture", label="kind")
    assert images.class_names == ("0", "1", "2", "3")
    with pytest.raises(ValueError, match="no 'nothing': name its image"):
        adapt(data, image="nothing")


@pytest.mark.parametrize("make", [TfdsSource, HuggingFaceSet])
def test_channels_of_arrays_and_of_pillow_images(make):
    gray = [x[..., :1] for x in PIXELS]
    pillow = [np.asarray(Image.fromarray(x).convert("L"))[..., None] for x in PIXELS]
    if make is HuggingFaceSet:
        gray = [x[..., 0] for x in gray]
    as_grey = adapt(make(PIXELS), channels=1).read()
    np.testing.assert_array_equal(as_grey.images, np.stack(pillow))
    mixed = adapt(make([gray[0], *PIXELS[1:]]), channels=3).read()
    np.testing.assert_array_equal(mixed.images[1:], np.stack(PIXELS[1:]))
    np.testing.assert_array_equal(mixed.images[0], np.repeat(PIXELS[0][..., :1], 3, axis=2))
    small = adapt(make(PIXELS), channels=1, size=3)
    assert small[0][0].shape == (3, 3, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_arrays_that_are_no_color(unhooked, channels):
    four = [np.zeros((6, 4, 4), np.uint8)] * 9
    assert adapt(TfdsSource(four)).image_shape == (6, 4, 4)
    with pytest.raises(DataError, match="image 0 of pets has 4 channels"):
        adapt(TfdsSource(four), channels=channels)
    with pytest.raises(ValueError, match="channels is 4"):
        adapt(TfdsSource(four), channels=4)  # pyright: ignore[reportArgumentType]


def test_channels_first(tmp_path):
    """As Hugging Face gives tensors of PyTorch."""
    images = random_pixels(9, (8, 6))
    planes: Any = [np.ascontiguousarray(np.moveaxis(x, -1, 0)) for x in images]
    np.testing.assert_array_equal(adapt(TfdsSource(planes)).read().images, np.stack(images))
    records = write_records(TfdsSource(planes), tmp_path / "x", progress=False)
    np.testing.assert_array_equal(records[3][0], images[3])


def test_text_labels_are_numbered_by_name(tmp_path):
    words = [("ox", "cat", "dog")[i] for i in LABELS]
    source = TfdsSource(names=None, labels=words)
    images = adapt(source)
    assert images.class_names == ("cat", "dog", "ox")
    assert [images.class_names[i] for i in images.labels] == words
    records = write_records(source, tmp_path / "x", progress=False)
    assert [records.class_names[label] for _, label in records] == words
    named = adapt(TfdsSource(names=("ox", "dog", "cat"), labels=words))
    assert [named.class_names[i] for i in named.labels] == words
    assert named.class_names == ("ox", "dog", "cat")
    with pytest.raises(ValueError, match="labels holds 'cat'"):
        _ = adapt(TfdsSource(names=("ox", "dog", "cow"), labels=words)).labels


def test_text_labels_of_hugging_face():
    datasets = pytest.importorskip("datasets", reason="pip install 'rcig-eqx[hf]'")
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    words = [("ox", "cat", "dog")[i] for i in LABELS]
    rows = {"image": [Image.fromarray(x) for x in PIXELS], "label": words}
    images = adapt(datasets.Dataset.from_dict(rows, features=features))
    assert images.class_names == ("cat", "dog", "ox")
    assert [images.class_names[i] for i in images.labels] == words
    rows["label"] = [None, *words[1:]]
    with pytest.raises(DataError, match="'label'"):
        adapt(datasets.Dataset.from_dict(rows, features=features))


@pytest.mark.parametrize("kind", ["numpy", "torch", "jax"])
def test_formats_of_hugging_face(kind):
    pytest.importorskip("datasets", reason="pip install 'rcig-eqx[hf]'")
    pytest.importorskip(kind)
    images = random_pixels(9, (8, 6))
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.fromarray(x) for x in images], "label": LABELS.tolist()}
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES))
    )
    whole = datasets.Dataset.from_dict(rows, features=features).with_format(kind)
    np.testing.assert_array_equal(adapt(whole).read().images, np.stack(images))
    np.testing.assert_array_equal(adapt(whole).labels, LABELS)


@pytest.mark.parametrize("label", [None, 7])
def test_classes_without_names_are_counted(label):
    assert adapt(HuggingFaceSet(label=ClassLabel(None, label))).num_classes == (label or 3)


def test_grey_images_and_grey_ones_among_colored():
    gray = [x[..., 0] for x in PIXELS]
    assert adapt(HuggingFaceSet(gray)).image_shape == (6, 4, 1)
    for data in (
        HuggingFaceSet([*PIXELS[:8], gray[8]]),
        TfdsSource([*PIXELS[:8], gray[8][..., None]]),
    ):
        np.testing.assert_array_equal(adapt(data)[8][0], np.repeat(gray[8][..., None], 3, 2))


def test_a_grey_first_image_does_not_take_the_color_from_the_rest():
    data = HuggingFaceSet([png(PIXELS[0][..., 0]), *map(png, PIXELS[1:])])
    with pytest.raises(DataError, match=r"channels="):
        adapt(data)[1]
    np.testing.assert_array_equal(adapt(data, channels=3)[1][0], PIXELS[1])
    assert adapt(data, channels=1)[1][0].shape == (6, 4, 1)


@pytest.mark.parametrize(("data", "message"), [
    (TfdsSource([*PIXELS[:8], np.zeros((9, 9, 3), np.uint8)]),
     r"image 8 of pets is \(9, 9, 3\) .*adapt\(dataset, size="),
    (TfdsSource([*PIXELS[:8], np.zeros((6, 4, 3), np.float32)]), "image 8 of pets is float32"),
    (HuggingFaceSet([*(png(x) for x in PIXELS[:8]), b"cut"]), "image 8 of pets cannot be read"),
    (TfdsSource(labels=LABELS - 1), "int64 from -1.*without a class"),
])  # fmt: skip
def test_what_cannot_be_used_is_named(data, message):
    with pytest.raises(DataError, match=message):
        adapt(data).read()


@pytest.mark.parametrize("value", [[1, 2], np.zeros(3), {"train": HuggingFaceSet()}])
def test_other_objects(value):
    with pytest.raises(ValueError, match="one split of a Hugging Face dataset"):
        adapt(value)


def test_an_empty_set():
    with pytest.raises(DataError, match="pets is empty"):
        adapt(HuggingFaceSet([]))


def test_a_folder_is_no_foreign_set(tmp_path):
    from official_files import write_images

    write_images(tmp_path, {"a": 2})
    with pytest.raises(ValueError, match="ImageFolder: pass one split"):
        adapt(ImageFolder(tmp_path))
