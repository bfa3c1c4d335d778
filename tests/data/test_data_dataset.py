import numpy as np
import pytest

from rcig_eqx.data import DataError, Dataset
from rcig_eqx.data._dataset import validate

IMAGES = np.zeros((4, 3, 2, 1), np.uint8)
LABELS = np.array([0, 1, 0, 1])
NAMES = ("cat", "dog")


def with_pixel(value):
    images = IMAGES.astype(np.float32)
    images[2, 1, 0, 0] = value
    images[3, 0, 0, 0] = value
    return images


def test_properties():
    data = Dataset(IMAGES, LABELS, NAMES, "pets")
    assert (len(data), data.num_classes, data.image_shape) == (4, 2, (3, 2, 1))
    assert repr(data) == "Dataset('pets': 4 images 3x2x1, 2 classes)"
    assert Dataset(IMAGES, LABELS, NAMES).name == "custom"


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("label_dtype", [np.uint8, np.int32, np.int64])
def test_accepted_types_are_kept(dtype, label_dtype):
    data = Dataset(IMAGES.astype(dtype), LABELS.astype(label_dtype), NAMES)
    assert data.images.dtype == dtype
    assert data.labels.dtype == label_dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[..., 0]}, r"images\[\.\.\., None\]"),
        ({"images": IMAGES[0, ..., 0]}, r"images\[None, \.\.\., None\]"),
        ({"images": IMAGES[:3]}, "3 images but labels have shape"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "empty"),
        ({"images": IMAGES.astype(np.int32)}, r"int32.*astype\(np\.uint8\)"),
        ({"images": IMAGES.astype(bool)}, "bool.*uint8"),
        ({"images": with_pixel(np.nan)}, r"2 NaN or infinite.*index \(2, 1, 0, 0\)"),
        ({"images": with_pixel(np.inf)}, r"2 NaN or infinite.*nan_to_num"),
        ({"images": [[[[0]]]]}, "from_arrays"),
        ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, r"looks like \[n c h w\].*np\.moveaxis"),
        ({"labels": np.eye(2)[LABELS]}, r"one-hot.*argmax\(axis=1\)"),
        ({"labels": LABELS[:, None]}, r"labels have shape \(\d, 1\): pass labels\.ravel\(\)"),
        ({"labels": LABELS.astype(np.float32)}, r"float32.*astype\(np\.int32\)"),
        ({"labels": LABELS.astype(bool)}, r"bool.*astype\(np\.int32\)"),
        ({"labels": LABELS + 1}, "reach 2 but there are 2 class_names.*0..1"),
        ({"labels": LABELS - 1}, "start at -1.*from 0"),
        ({"class_names": ()}, "at least one"),
        ({"class_names": ("cat", "")}, "no empty"),
        ({"class_names": ("cat", "cat")}, "duplicates: cat"),
        ({"class_names": ["cat", "dog"]}, "tuple of strings"),
    ],
)
def test_mistakes_name_their_fix(change, message):
    arguments = {"images": IMAGES, "labels": LABELS, "class_names": NAMES} | change
    with pytest.raises(ValueError, match=message):
        validate(**arguments)


def test_a_dataset_validates_itself():
    with pytest.raises(ValueError, match="there are 2 class_names"):
        Dataset(IMAGES, LABELS + 1, NAMES)
    with pytest.raises(ValueError, match=r"images\[\.\.\., None\]"):
        Dataset(IMAGES[..., 0], LABELS, NAMES)


def test_non_finite_pixels_are_found_beyond_the_first_chunk():
    images = np.zeros((5000, 1, 1, 1), np.float32)
    images[4500] = np.nan
    with pytest.raises(ValueError, match=r"1 NaN or infinite.*\(4500, 0, 0, 0\)"):
        Dataset(images, np.zeros(5000, np.int32), ("a",))


def test_from_arrays_names_the_classes_itself():
    data = Dataset.from_arrays(IMAGES, [0, 1, 2, 2], name="mine")
    assert data.class_names == ("0", "1", "2")
    assert data.name == "mine"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), np.eye(4), "one-hot"),
        (IMAGES[..., 0], LABELS, "None"),
        (IMAGES[:0], LABELS[:0], "empty"),
    ],
)
def test_from_arrays_checks_before_it_counts_classes(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays(images, labels)


def test_memmap_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert Dataset(mapped, LABELS, NAMES).images is mapped
    assert isinstance(Dataset.from_arrays(mapped, LABELS).images, np.memmap)


def test_subset_keeps_order_and_classes():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    small = Dataset(images, LABELS, NAMES, "pets").subset([3, 0])
    assert small.images.ravel().tolist() == [3, 0]
    assert small.labels.tolist() == [1, 0]
    assert (small.class_names, small.name) == (NAMES, "pets")
    with pytest.raises(ValueError, match="indices is empty"):
        small.subset([])


def test_per_class_is_balanced_distinct_and_determined_by_the_generator():
    labels = np.arange(30) % 3
    data = Dataset(np.zeros((30, 1, 1, 1), np.uint8), labels, ("a", "b", "c"))
    chosen = data.per_class(4, np.random.default_rng(0))
    assert labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(chosen.tolist())) == 12
    np.testing.assert_array_equal(chosen, data.per_class(4, np.random.default_rng(0)))
    assert set(data.per_class(10, np.random.default_rng(1)).tolist()) == set(range(30))


def test_per_class_names_every_short_class():
    data = Dataset(np.zeros((4, 1, 1, 1), np.uint8), np.array([0, 0, 0, 1]), ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"3 images of each class.*'b' \(1\), 'c' \(0\)"):
        data.per_class(3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one"):
        data.per_class(0, np.random.default_rng(0))


def test_data_error_is_a_value_error():
    assert issubclass(DataError, ValueError)
