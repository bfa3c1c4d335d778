import inspect
import time
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from official_files import write_images
from rcig_eqx.data import Dataset, ImageFolder, sample, stream, write_records

N, BATCH = 23, 5
PER_EPOCH = N // BATCH


def numbered(dtype: type = np.uint8):
    """Image i is i everywhere, its label is i modulo 3."""
    images = np.broadcast_to(np.arange(N, dtype=dtype)[:, None, None, None], (N, 2, 3, 1))
    return images.copy(), (np.arange(N) % 3).astype(np.int32)


def from_pair(tmp_path):
    return numbered(np.float32)


def from_dataset(tmp_path):
    return Dataset(*numbered(), ("a", "b", "c"))


def from_memmap(tmp_path):
    images, labels = numbered()
    np.save(tmp_path / "x.npy", images)
    return np.load(tmp_path / "x.npy", mmap_mode="r"), labels


def from_jax(tmp_path):
    return tuple(jnp.asarray(x) for x in numbered())


def from_grain_pairs(tmp_path):
    images, labels = numbered()
    return grain.MapDataset.range(N).map(lambda i: (images[i], labels[i]))


def from_grain_dicts(tmp_path):
    images, labels = numbered()
    return grain.MapDataset.range(N).map(lambda i: {"image": images[i], "label": labels[i]})


def from_folder(tmp_path):
    from PIL import Image

    for i in range(N):
        folder = tmp_path / "images" / f"{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 3), i, np.uint8)).save(folder / f"{i}.png")
    return ImageFolder(tmp_path / "images")


SOURCES = [
    from_pair,
    from_jax,
    from_dataset,
    from_memmap,
    from_grain_pairs,
    from_grain_dicts,
    from_folder,
]


@pytest.fixture(params=SOURCES)
def train(request, tmp_path):
    return request.param(tmp_path)


def ids(batch):
    images, labels = batch
    assert images.shape == (BATCH, 2, 3, 1)
    assert type(images) is np.ndarray
    numbers = images[:, 0, 0, 0].astype(int)
    assert (images == images[:, :1, :1]).all()
    assert (labels == numbers % 3).all()
    return numbers.tolist()


def take(batches, count):
    return [i for _ in range(count) for i in ids(next(batches))]


def test_epochs_have_no_repetition_and_differ(train):
    batches = stream(train, BATCH, seed=0)
    epochs = [take(batches, PER_EPOCH) for _ in range(6)]
    assert all(len(set(epoch)) == PER_EPOCH * BATCH for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set().union(*epochs) == set(range(N))  # the dropped ones change from epoch to epoch


def test_full_coverage_when_the_batch_divides():
    images, labels = numbered()
    batches = stream((images[:20], labels[:20]), BATCH, seed=0)
    for _ in range(3):
        assert sorted(take(batches, 4)) == list(range(20))


def test_the_seed_decides(train):
    def first(seed):
        batches = stream(train, BATCH, seed=seed)
        return [ids(next(batches)) for _ in range(9)]

    assert first(3) == first(3)
    assert first(3) != first(4)


@pytest.mark.parametrize("before", [0, 3, PER_EPOCH, 11])
def test_a_saved_state_continues_exactly(train, before):
    batches = stream(train, BATCH, seed=1)
    for _ in range(before):
        next(batches)
    state = batches.get_state()
    expected = [ids(next(batches)) for _ in range(7)]
    fresh = stream(train, BATCH, seed=1)
    next(fresh)
    fresh.set_state(state)
    assert [ids(next(fresh)) for _ in range(7)] == expected
    batches.set_state(state)
    assert [ids(next(batches)) for _ in range(7)] == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_types_and_soft_labels_are_kept(dtype):
    images, labels = numbered(dtype)
    soft = np.eye(3, dtype=np.float32)[labels]
    x, y = next(stream((images, soft), BATCH, seed=0))
    assert (x.dtype, y.dtype, y.shape) == (dtype, np.float32, (BATCH, 3))


def test_batches_are_copies():
    images, labels = numbered()
    x, _ = next(stream((images, labels), N, seed=0))
    x[:] = 255
    assert images.max() == N - 1


@pytest.mark.parametrize("batch_size", [0, -1, N + 1])
def test_batch_size_out_of_range(train, batch_size):
    with pytest.raises(ValueError, match=rf"batch_size is {batch_size} but there are {N} images"):
        stream(train, batch_size, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(train, seed):
    with pytest.raises(ValueError, match="seed is"):
        stream(train, BATCH, seed=seed)


def test_lengths_must_agree():
    images, labels = numbered()
    with pytest.raises(ValueError, match="23 images but 22 labels"):
        stream((images, labels[1:]), BATCH, seed=0)


@pytest.mark.parametrize(("element", "message"), [
    ({"x": 1, "y": 2}, r"a dictionary with \['x', 'y'\]"),
    ((1, 2, 3), "tuple"),
    (1, "int"),
])  # fmt: skip
def test_other_elements_are_refused(element, message):
    dataset = grain.MapDataset.range(N).map(lambda _: element)
    with pytest.raises(ValueError, match=f"the grain dataset yields .*{message}"):
        next(stream(dataset, BATCH, seed=0))


def test_endless_datasets_are_refused():
    pairs = from_grain_pairs(None)
    with pytest.raises(ValueError, match="without repeat"):
        stream(pairs.repeat(), BATCH, seed=0)
    endless: Any = pairs.to_iter_dataset()
    with pytest.raises(ValueError, match="cannot be shuffled anew"):
        inspect.unwrap(stream)(endless, BATCH, seed=0)


def test_folder_of_many_classes(tmp_path):
    write_images(tmp_path, {f"{i}": 2 for i in range(10)})
    images, labels = next(stream(ImageFolder(tmp_path), 20, seed=0))
    assert images.shape == (20, 6, 5, 3)
    assert np.bincount(labels).tolist() == [2] * 10


def test_a_sample_of_a_folder_is_balanced_and_has_at_least_what_is_needed(tmp_path):
    write_images(tmp_path, {"a": 9, "b": 4, "c": 6})
    folder = ImageFolder(tmp_path)
    few = sample(folder, 9, at_least=1, seed=0)
    assert few.class_names == ("a", "b", "c")
    assert np.bincount(few.labels).tolist() == [3, 3, 3]
    assert np.bincount(sample(folder, 9, at_least=5, seed=0).labels).tolist() == [5, 4, 5]
    real = {folder[i][0].tobytes() for i in range(len(folder))}
    assert {image.tobytes() for image in few.images} <= real
    assert len({image.tobytes() for image in few.images}) == len(few)


def test_a_sample_of_a_grain_dataset_is_of_the_set(tmp_path):
    some = sample(from_grain_pairs(tmp_path), 12, at_least=1, seed=0)
    numbers = some.images[:, 0, 0, 0]
    assert len(set(numbers.tolist())) == len(some) == 12
    np.testing.assert_array_equal(some.labels, numbers % 3)


def test_a_batch_costs_little():
    """Gathering image by image takes tens of milliseconds; one gather takes a tenth of one."""
    images = np.zeros((10_000, 28, 28, 1), np.float32)
    batches = stream((images, np.zeros(10_000, np.int32)), 256, seed=0)
    costs = []
    for _ in range(50):
        start = time.perf_counter()
        next(batches)
        costs.append(time.perf_counter() - start)
    assert np.median(costs) < 8e-3


def test_processes_together_read_the_batches_of_one(train):
    whole = stream(train, BATCH, seed=2)
    parts = [stream(train, BATCH, seed=2, rows=rows) for rows in (slice(0, 2), slice(2, BATCH))]
    for _ in range(3 * PER_EPOCH + 1):  # over the ends of epochs
        pieces = [next(part) for part in parts]
        for expected, mine in zip(next(whole), zip(*pieces, strict=True), strict=True):
            assert [len(piece) for piece in mine] == [2, BATCH - 2]
            np.testing.assert_array_equal(np.concatenate(mine), expected)


UNEQUAL = np.array([0] * 15 + [1] * 5 + [3] * 3, np.int32)  # class 2 has none


def unequal(kind, tmp_path):
    images, _ = numbered()
    if kind == "memory":
        return images, UNEQUAL
    return write_records(Dataset(images, UNEQUAL, ("a", "b", "c", "d")), tmp_path / "r",
                         progress=False)  # fmt: skip


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_balanced_batches_have_as_many_of_each_class(kind, tmp_path):
    batches = stream(unequal(kind, tmp_path), 7, seed=0, balanced=True)
    taken: dict[int, list[int]] = {0: [], 1: [], 3: []}
    for _ in range(30):
        images, labels = next(batches)
        numbers = images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(labels, UNEQUAL[numbers])
        counts = np.bincount(labels, minlength=4)[[0, 1, 3]]
        assert counts.sum() == 7
        assert counts.min() >= 2
        for number, label in zip(numbers.tolist(), labels.tolist(), strict=True):
            taken[label].append(number)
    assert {len(numbers) for numbers in taken.values()} == {70}
    for label, numbers in taken.items():  # each image once before one comes again
        members = np.flatnonzero(label == UNEQUAL).tolist()
        rounds = [numbers[i : i + len(members)] for i in range(0, 70, len(members))]
        assert all(sorted(r) == members for r in rounds if len(r) == len(members))
        assert len({tuple(r) for r in rounds}) > 1  # in a new order


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_balanced_batches_are_told_by_their_number(kind, tmp_path):
    data = unequal(kind, tmp_path)

    def batches(**options):
        return stream(data, 6, seed=4, balanced=True, **options)

    first = batches()
    whole = [next(first) for _ in range(12)]
    later = batches(start=9)
    for images, labels in whole[9:]:
        again = next(later)
        np.testing.assert_array_equal(again[0], images)
        np.testing.assert_array_equal(again[1], labels)
    running = batches()
    for _ in range(5):
        next(running)
    saved, fresh = running.get_state(), batches()
    fresh.set_state(saved)
    np.testing.assert_array_equal(next(fresh)[0], whole[5][0])
    parts = [batches(rows=rows) for rows in (slice(0, 2), slice(2, 6))]
    for expected in whole:
        pieces = [next(part) for part in parts]
        for mine, all_ in zip(zip(*pieces, strict=True), expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(mine), all_)
    other = next(stream(data, 6, seed=5, balanced=True))[0]
    assert not np.array_equal(other, whole[0][0])


def test_balanced_batches_smaller_than_the_classes_take_turns():
    images, _ = numbered()
    labels = (np.arange(N) % 5).astype(np.int32)
    batches = stream((images, labels), 3, seed=0, balanced=True)
    seen = np.concatenate([next(batches)[1] for _ in range(10)])
    assert seen.tolist() == [0, 1, 2, 3, 4] * 6


def test_what_cannot_be_balanced(tmp_path):
    with pytest.raises(ValueError, match="balanced needs labels known before the run"):
        stream(from_grain_pairs(tmp_path), BATCH, seed=0, balanced=True)
    images, labels = numbered()
    with pytest.raises(ValueError, match=r"balanced needs class numbers: labels are float64"):
        stream((images, np.eye(3)[labels]), BATCH, seed=0, balanced=True)


def test_a_process_decodes_its_own_rows_alone():
    images, labels = numbered()
    decoded: list[int] = []

    def decode(i):
        decoded.append(i)
        return images[i], labels[i]

    batches = stream(grain.MapDataset.range(N).map(decode), BATCH, seed=0, rows=slice(1, 3))
    seen = [i for _ in range(PER_EPOCH) for i in next(batches)[0][:, 0, 0, 0].tolist()]
    assert set(seen) <= set(decoded)
    assert len(decoded) <= 2 * (PER_EPOCH + 5)  # and those read ahead


@pytest.mark.parametrize(
    "rows", [slice(0, 6), slice(3, 3), slice(None), slice(-2, 4), slice(0, 4, 2)]
)
def test_rows_outside_the_batch(train, rows):
    with pytest.raises(ValueError, match="rows is"):
        stream(train, BATCH, seed=0, rows=rows)


def test_a_share_goes_on_from_a_saved_state(train):
    def share():
        return stream(train, BATCH, seed=1, rows=slice(2, 4))

    batches = share()
    for _ in range(PER_EPOCH + 1):
        next(batches)
    state = batches.get_state()
    fresh = share()
    fresh.set_state(state)
    for _ in range(5):
        np.testing.assert_array_equal(next(fresh)[0], next(batches)[0])
