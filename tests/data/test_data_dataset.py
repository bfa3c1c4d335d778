import numpy as np
import pytest

from rcig_eqx.data import (
    AbstractImages,
    DataError,
    Dataset,
    Identity,
    apply_in_chunks,
    hold_out,
    standardize,
    stream,
    write_records,
)
from rcig_eqx.data._dataset import validate
from rcig_eqx.data._names import class_names_of

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
        ({"labels": np.array(NAMES)[LABELS]}, r"np\.unique\(labels, return_inverse=True\)"),
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


COMPOSED, APART = "\u00e9t\u00e9", "e\u0301te\u0301"


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (["cat", "dog"], NAMES),
        (np.array(["cat", "dog"]), NAMES),
        (iter(["cat", "dog"]), NAMES),
        ({"dog": 1, "cat": 0}, NAMES),
        ({1: "dog", 0: "cat"}, NAMES),
        ({np.int64(1): b"dog", np.int64(0): b"cat"}, NAMES),
        ([b"cat", b"dog"], NAMES),
        (np.array([b"cat", b"dog"]), NAMES),
        ([APART, "dog"], (COMPOSED, "dog")),
        ([APART.encode(), "dog"], (COMPOSED, "dog")),
    ],
)
def test_class_names_in_other_forms(names, right):
    made = Dataset.from_arrays(IMAGES, LABELS, names).class_names
    assert made == right
    assert {type(name) for name in made} == {str}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ab", "class_names is 'ab'"),
        (b"ab", "class_names is b'ab'"),
        (np.array("ab"), "class_names is 'ab'"),
        ({"cat", "dog"}, r"class_names is .* \(set\)"),
        ({"cat": 1, "dog": 0}.keys(), "dict_keys"),
        (7, "class_names is 7"),
        ({1: "cat", 2: "dog"}, "does not number its classes from 0"),
        ({"cat": 0, "dog": 0}, "does not number"),
        ({"0": "cat", "1": "dog"}, "does not number"),
        ({True: "dog", False: "cat"}, "does not number"),
        ([0, 1], "class_names holds 0"),
        ([None, "dog"], "class_names holds None"),
        ([b"\xff", "dog"], "not UTF-8"),
        ([COMPOSED, APART], "duplicates"),
        (["", "dog"], "no empty"),
        ({}, "at least one"),
    ],
)
def test_what_is_no_list_of_class_names(names, message):
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays(IMAGES, LABELS, names)
    with pytest.raises(ValueError, match=message.replace("class_names", "names")):
        class_names_of(names, "names")


def test_a_dataset_composes_its_class_names():
    assert Dataset(IMAGES, LABELS, (APART, "dog")).class_names == (COMPOSED, "dog")
    with pytest.raises(ValueError, match="duplicates"):
        Dataset(IMAGES, LABELS, (APART, COMPOSED))


@pytest.mark.parametrize(
    "make",
    [
        np.array,
        lambda x: np.array(x, object),
        lambda x: np.array([name.encode() for name in x]),
        lambda x: np.array(x, np.dtypes.StringDType()),
        list,
    ],
)
def test_text_labels_are_numbered_by_name(make):
    words = ["dog", COMPOSED, "dog", "cat"]
    data = Dataset.from_arrays(IMAGES, make(words))
    assert data.class_names == ("cat", "dog", COMPOSED)
    assert [data.class_names[i] for i in data.labels] == words
    given = Dataset.from_arrays(IMAGES, make(words), ["dog", "ox", APART, "cat"])
    assert given.labels.tolist() == [0, 2, 0, 3]
    with pytest.raises(ValueError, match=f"labels holds '{COMPOSED}', which is none"):
        Dataset.from_arrays(IMAGES, make(words), ["dog", "cat"])


@pytest.mark.parametrize("labels", [["a", None, "b", "c"], ["a", 1, "b", "c"], [0, 1, None, 1]])
def test_labels_that_are_partly_text(labels):
    with pytest.raises(ValueError, match="labels is object"):
        Dataset.from_arrays(IMAGES, np.array(labels, object))


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "<f4"])
@pytest.mark.parametrize("label_dtype", [">i4", ">u2", "<i8"])
def test_arrays_are_brought_to_the_byte_order_of_the_machine(dtype, label_dtype):
    images, labels = with_pixel(0.25).astype(dtype), LABELS.astype(label_dtype)
    for data in (Dataset(images, labels, NAMES), Dataset.from_arrays(images, labels)):
        assert data.images.dtype == np.dtype(dtype[1:])
        assert data.labels.dtype == np.dtype(label_dtype[1:])
        np.testing.assert_array_equal(data.images, images)
        np.testing.assert_array_equal(data.labels, labels)


def test_masked_arrays():
    whole, hole = np.zeros(IMAGES.shape, bool), np.zeros(IMAGES.shape, bool)
    hole[1] = True
    data = Dataset(np.ma.array(IMAGES, mask=whole), LABELS, NAMES)
    assert type(data.images) is np.ndarray
    for images, labels, what in (
        (np.ma.array(IMAGES, mask=hole), LABELS, "images has 6 masked"),
        (IMAGES, np.ma.array(LABELS, mask=LABELS > 0), "labels has 2 masked"),
    ):
        with pytest.raises(ValueError, match=what):
            Dataset(images, labels, NAMES)
        with pytest.raises(ValueError, match=what):
            Dataset.from_arrays(images, labels)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here")
def test_floats_of_more_than_64_bits():
    with pytest.raises(ValueError, match=r"images is .*astype"):
        Dataset.from_arrays(IMAGES.astype(np.longdouble), LABELS)


class Own(AbstractImages):
    """A set of a user's own, in whichever byte order."""

    name, class_names, image_shape = "own", NAMES, (3, 2, 1)
    dtype, labels = np.dtype(">f4"), LABELS.astype(">i4")

    def image(self, index):
        return np.full(self.image_shape, self.labels[index] / 2, self.dtype)


def test_a_set_of_ones_own_in_another_byte_order(tmp_path):
    for images, labels in (Own().gather(range(4)), next(stream(Own(), 4, seed=0))):
        assert (images.dtype, labels.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels / 2)
    np.testing.assert_array_equal(
        write_records(Own(), tmp_path / "x", progress=False).read().images, Own().read().images
    )


@pytest.mark.parametrize("indices", [
    [True, False, True, False], np.array([True, False, True, False]), [0.0, 1.5], [[0, 1]], ["0"],
])  # fmt: skip
def test_gather_takes_indices(unhooked, indices):
    with pytest.raises(ValueError, match="indices"):
        Own().gather(indices)


def test_gather_of_indices():
    for indices in ([2, 0], np.array([2, 0], np.uint8), range(2, -1, -2), (2, 0)):
        assert Own().gather(indices)[1].tolist() == [0, 0]
    assert Own().gather([])[0].shape == (0, 3, 2, 1)


@pytest.mark.parametrize("use", [
    lambda x: standardize(x),
    lambda x: apply_in_chunks(Identity(), x),
    lambda x: Identity()(x),
    lambda x: next(stream((x, LABELS), 2, seed=0)),
])  # fmt: skip
def test_every_entry_of_arrays_looks_at_them(use):
    images = with_pixel(0.5)
    use(images.astype(">f4"))
    with pytest.raises(ValueError, match="masked entries"):
        use(np.ma.array(images, mask=images > 0))


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


def test_what_is_no_labeled_set_has_no_part_to_hold_out(unhooked):
    with pytest.raises(ValueError, match="object is no labeled set: pass a Dataset"):
        hold_out(object(), 0.5, seed=0)  # pyright: ignore
