"""Sets written once to records: the same images, batches and whitening as in memory."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pytest

from official_files import random_set, write_images
from rcig_eqx.data import (
    AbstractImages,
    DataError,
    Dataset,
    ImageFolder,
    Records,
    _records,
    apply_in_chunks,
    resize,
    sample,
    stream,
    write_records,
    zca,
)

NAMES = ("cat", "dög", "ox")
N, BATCH = 23, 5


def in_memory(dtype: Any = np.uint8, n=N, shape=(6, 4, 3)):
    images, labels = random_set(n, shape, 3)
    if dtype != np.uint8:
        images = (images / 255).astype(dtype)
    return Dataset(images, labels, NAMES, "pets")


@pytest.fixture
def records(tmp_path):
    return write_records(in_memory(), tmp_path / "pets", progress=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_what_was_written_is_read(dtype, tmp_path):
    data = in_memory(dtype)
    written = write_records(data, tmp_path / "a" / "pets", progress=False)
    for records in (written, Records(tmp_path / "a" / "pets"), pickle.loads(pickle.dumps(written))):
        grain.MapDataset.source(records)
        assert (len(records), records.num_classes, records.dtype) == (N, 3, dtype)
        assert (records.name, records.class_names) == ("pets", NAMES)
        assert records.image_shape == (6, 4, 3)
        np.testing.assert_array_equal(records.labels, data.labels)
        image, label = records[7]
        np.testing.assert_array_equal(image, data.images[7])
        assert (image.dtype, label) == (dtype, data.labels[7])
        np.testing.assert_array_equal(records[-1][0], data.images[-1])
        back = records.read()
        np.testing.assert_array_equal(back.images, data.images)
        assert (back.class_names, back.name) == (NAMES, "pets")
    written.verify(progress=False)
    assert repr(written) == "Records('pets': 23 images, 3 classes)"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["pets"]
    with pytest.raises(IndexError, match=r"23 is not in 0\.\.22"):
        written[N]


def test_every_form_can_be_written(tmp_path):
    arrays = write_images(tmp_path / "pictures", {"a": 3, "b": 2})
    folder = write_records(ImageFolder(tmp_path / "pictures"), tmp_path / "folder", progress=False)
    np.testing.assert_array_equal(folder.read().images, np.concatenate([arrays["a"], arrays["b"]]))
    assert (folder.class_names, folder.name) == (("a", "b"), "pictures")
    data = in_memory()
    pair = write_records((data.images, data.labels), tmp_path / "pair", progress=False)
    assert pair.class_names == ("0", "1", "2")
    again = write_records(folder, tmp_path / "again", size=4, progress=False)
    assert again.image_shape == (4, 4, 3)
    np.testing.assert_array_equal(again[4][0], resize(arrays["b"][1], 4))


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ([1, 2], {}, ValueError, "list is no labeled set: pass a Dataset"),
        (in_memory(np.float32), {"size": 3}, ValueError, "float32: only uint8 images"),
        (in_memory(), {"size": 0}, ValueError, "size is 0: choose a whole number"),
        (in_memory(np.float16), {"size": 2.5}, ValueError, "size is 2.5"),
    ],
)
def test_mistakes(source, options, error, message, tmp_path):
    call = getattr(write_records, "__wrapped__", write_records)  # past the type checker
    with pytest.raises(error, match=message):
        call(source, tmp_path / "x", progress=False, **options)
    assert not list(tmp_path.iterdir())


def test_what_stands_there_stays(records, tmp_path):
    with pytest.raises(FileExistsError, match=r"pets is there: open it with data\.Records"):
        write_records(in_memory(), records.folder, progress=False)
    Records(records.folder)


class Failing(AbstractImages):
    """Images of which the fifth cannot be had."""

    name, class_names, image_shape = "failing", ("a",), (64, 64, 3)
    labels = np.zeros(9, np.int32)

    def __init__(self, error):
        self.error = error

    def image(self, index):
        if index == 5:
            raise self.error
        return np.zeros(self.image_shape, np.uint8)


@pytest.mark.parametrize("error", [DataError("cut"), KeyboardInterrupt(), OSError(28, "No space")])
def test_an_interrupted_call_leaves_nothing(error, tmp_path):
    with pytest.raises(type(error)) as caught:
        write_records(Failing(error), tmp_path / "x", progress=False)
    assert not list(tmp_path.iterdir())
    if isinstance(error, OSError):
        assert "could not write the records of failing" in str(caught.value)
        assert "No space left on device" in str(caught.value)


def test_a_full_disk_is_said_beforehand(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**26)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"records of pets to .*0\.0 GB are needed.*0\.1 GB free"):
        write_records(in_memory(), tmp_path / "x", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_said(tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    monkeypatch.setattr(_records, "IMAGES", "/dev/full")
    with pytest.raises(OSError, match=r"records of pets to .*No space left on device"):
        write_records(in_memory(n=3000), tmp_path / "x", progress=False)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, sys
import numpy as np
from rcig_eqx.data._records import Stream, write_stream

def images():
    for i in range(9):
        if i == 5:
            os._exit(9)
        yield np.zeros((4, 4, 3), np.uint8), 0

write_stream(Stream("x", ("a",), 9, images()), sys.argv[1], progress=False)
"""


def test_a_killed_call_leaves_no_set_and_its_remains_go_in_time(tmp_path):
    folder = tmp_path / "x"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.part-")
    with pytest.raises(DataError, match="holds no records"):
        Records(folder)
    write_records(in_memory(), folder, progress=False)
    assert left.exists()  # it may be another process that is still writing
    shutil.rmtree(folder)
    for place in (*left.iterdir(), left):
        os.utime(place, (time.time() - 7200, time.time() - 7200))
    write_records(in_memory(), folder, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_two_writers_at_once_leave_one_whole_set(tmp_path):
    data = in_memory()

    def images():
        for i, image in enumerate(data.images):
            if i == 3:  # the other one, which is faster
                write_records(data, tmp_path / "x", progress=False)
            yield image, int(data.labels[i])

    both = _records.write_stream(
        _records.Stream("pets", NAMES, N, images()), tmp_path / "x", progress=False
    )
    np.testing.assert_array_equal(both.read().images, data.images)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("items", "message"), [
    ([], "ended after 0 images, where 2 were expected"),
    ([(np.zeros((2, 2, 3), np.uint8), 0)], "ended after 1 images, where 2 were expected"),
    ([(np.zeros((2, 2, 3), np.uint8), 0), (np.zeros((2, 2, 3), np.float32), 0)], "give a size"),
    ([(np.zeros((2, 2, 3), np.uint8), 1)], "image 0 of x has label 1"),
    ([(np.zeros((2, 2, 3), np.int32), 0)], "int32: pass uint8 or floats"),
])  # fmt: skip
def test_streams_that_are_no_set(items, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _records.write_stream(_records.Stream("x", ("a",), 2, items), tmp_path / "x")


def rewrite_card(folder, **changes):
    path = folder / "card.json"
    card = json.loads(path.read_text()) | changes
    card["sha256"] = _records._sum_of_card(card)
    path.write_text(json.dumps(card))


def edit(name, change):
    def damage(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


DAMAGES = {
    "no card": (lambda f: (f / "card.json").unlink(), "holds no records"),
    "no images": (lambda f: (f / "images.array_record").unlink(), "damaged"),
    "no labels": (lambda f: (f / "labels.npy").unlink(), "damaged"),
    "cut images": (edit("images.array_record", lambda b: b[:-100]), "bytes where"),
    "cut card": (edit("card.json", lambda b: b[:-100]), "damaged"),
    "changed card": (edit("card.json", lambda b: b.replace(b"cat", b"cow")), "its checksum"),
    "other labels": (edit("labels.npy", lambda b: b[:-4] + b"\2\0\0\0"), "labels.npy does not"),
    "pickled labels": (
        lambda f: np.save(f / "labels.npy", np.array([None]), allow_pickle=True),
        "Object arrays cannot be loaded",
    ),
    "labels in another byte order": (
        edit("labels.npy", lambda b: b.replace(b"<i4", b">i4")),
        "labels.npy is >i4",
    ),
    "labels of another type": (edit("labels.npy", lambda b: b.replace(b"<i4", b"<u4")), "is <u4"),
    "labels in rows": (
        lambda f: np.save(f / "labels.npy", np.load(f / "labels.npy")[:, None]),
        r"labels.npy is <i4 \(23, 1\)",
    ),
    "more than labels": (edit("labels.npy", lambda b: b + b"\0"), "an array has 221 bytes"),
    "names that are no list": (lambda f: rewrite_card(f, class_names="cdo"), "class_names is"),
    "a name twice": (lambda f: rewrite_card(f, class_names=["a", "b", "a"]), "duplicates: a"),
    "a class less": (lambda f: rewrite_card(f, class_names=["a", "b"]), "not of 2 classes"),
    "no shape": (lambda f: rewrite_card(f, image_shape=[6, 4, 3.0]), "image shape"),
    "other format": (lambda f: rewrite_card(f, format="x/9"), "format 'x/9'"),
    "other dtype": (lambda f: rewrite_card(f, dtype="object"), "dtype 'object'"),
    "broken footer": (
        edit("images.array_record", lambda b: b[:-65536] + b"\0" * 65536),
        "damaged",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders_are_refused(case, records):
    damage, message = DAMAGES[case]
    damage(records.folder)
    with pytest.raises(DataError, match=message) as caught:
        Records(records.folder)
    assert str(records.folder) in str(caught.value)


def test_images_of_another_size_are_noticed(records):
    rewrite_card(records.folder, image_shape=[6, 4, 1])
    with pytest.raises(DataError, match=r"image 0 of .*pets has 72 bytes, not \(6, 4, 1\) uint8"):
        Records(records.folder)[0]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_who_may_read_is_left_to_the_mask(mask, tmp_path):
    tmp_path.chmod(0o777)
    old = os.umask(mask)
    try:
        folder = write_records(in_memory(), tmp_path / "x", progress=False).folder
    finally:
        os.umask(old)
    modes = {p.stat().st_mode & 0o777 for p in folder.iterdir()}
    assert (folder.stat().st_mode & 0o777, modes) == (0o777 & ~mask, {0o666 & ~mask})


def test_a_folder_may_be_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    records = write_records(in_memory(), "~/pets", progress=False)
    assert records.folder == tmp_path / "pets"
    assert len(Records("~/pets")) == N
    with pytest.raises(ValueError, match="no home folder is known"):
        write_records(in_memory(), "~nobody-at-all/pets", progress=False)


def test_a_damaged_image_is_noticed_when_it_is_read(tmp_path):
    data = in_memory(n=40, shape=(64, 64, 3))
    folder = write_records(data, tmp_path / "x", progress=False).folder
    path = folder / "images.array_record"
    content = bytearray(path.read_bytes())
    content[content.find(data.images[20].tobytes()[:64]) + 100] ^= 1
    path.write_bytes(content)
    records = Records(folder)
    np.testing.assert_array_equal(records[3][0], data.images[3])
    with pytest.raises(DataError, match=r"is damaged at image 20 .*write it again"):
        records[20]
    with pytest.raises(DataError, match="is damaged at image 20"):
        records.verify(progress=False)


@pytest.mark.parametrize("rows", [None, slice(1, 4)])
@pytest.mark.parametrize("start", [0, 6])
def test_batches_are_those_of_the_set_in_memory(rows, start, records):
    streams = [
        stream(train, BATCH, seed=3, start=start, rows=rows) for train in (in_memory(), records)
    ]
    for _ in range(9):  # over the ends of epochs
        (x, y), (x_disk, y_disk) = map(next, streams)
        np.testing.assert_array_equal(x, x_disk)
        np.testing.assert_array_equal(y, y_disk)
        assert x_disk.flags.writeable


def test_whitened_batches_are_those_of_the_set_in_memory(records):
    data = in_memory()
    preprocess = zca(records)
    whole = Dataset.from_arrays(data.images, data.labels)
    white = apply_in_chunks(zca(whole), data.images)
    in_order, streamed = (stream(train, BATCH, seed=0) for train in ((white, data.labels), records))
    transform = jax.jit(preprocess.__call__)
    for _ in range(9):
        expected, (images, _) = next(in_order)[0], next(streamed)
        np.testing.assert_allclose(transform(images), expected, atol=2e-6)


def test_a_sample_of_all_is_the_set(records):
    whole = sample(records, 1000, at_least=1, seed=0)
    np.testing.assert_array_equal(whole.images, in_memory().images)
    few = sample(records, 6, at_least=1, seed=0)
    assert np.bincount(few.labels).tolist() == [2, 2, 2]


@pytest.mark.slow
def test_workers_change_nothing(records):
    alone, together = (stream(records, BATCH, seed=3, workers=workers) for workers in (0, 2))
    for _ in range(6):
        np.testing.assert_array_equal(next(alone)[0], next(together)[0])


READING = """
import sys, time
from rcig_eqx.data import Records, stream

if __name__ == "__main__":
    next(stream(Records(sys.argv[1]), 5, seed=0, workers=1))
    print("reading", flush=True)
    time.sleep(600)
"""


def running(process):
    """Whether a process goes on: one that waits to be counted does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_workers_end_when_their_parent_is_killed(records, tmp_path):
    script = tmp_path / "reading.py"
    script.write_text(READING)
    command = [sys.executable, str(script), str(records.folder)]
    quiet = {"stderr": subprocess.DEVNULL, "env": os.environ | {"JAX_PLATFORMS": "cpu"}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **quiet) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"reading\n"
        tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        assert any(map(running, children))
        parent.kill()
    end = time.monotonic() + 30
    while any(map(running, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(running, children))


@pytest.mark.slow
def test_200_000_images_are_streamed_in_less_than_2_gigabytes(tmp_path):
    """The benchmark, which also compares with the set in memory, for a few seconds each."""
    script = Path(__file__).parents[2] / "benchmarks" / "streaming.py"
    options = ["--folder", tmp_path / "x", "--workers", 0, "2", "--seconds", 5, "--block", 8]
    command = [sys.executable, str(script), *map(str, options)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sizes = re.findall(r"^\| records .* ([\d,]+) \|$", printed, re.MULTILINE)
    assert len(sizes) == 3
    assert all(int(size.replace(",", "")) < 2000 for size in sizes)
    assert "bit for bit, of the set in memory: True" in printed
    assert "the same bytes: True" in printed
    assert float(re.findall(r"apart by (\S+) at most", printed)[0]) < 1e-5


def test_resume_knows_the_set(records, tmp_path):
    other = write_records(in_memory().subset(range(N - 1, -1, -1)), tmp_path / "y", progress=False)
    same = write_records(in_memory(), tmp_path / "z", progress=False)
    assert list(records.marks) == list(same.marks) != list(other.marks)


def test_labels_beyond_the_class_names_are_refused_before_anything_is_read():
    class Unlabeled(Failing):
        labels = np.array([0, 0, -1], np.int32)

    with pytest.raises(DataError, match=r"failing has labels from -1 to 0 and 1 class names"):
        sample(Unlabeled(AssertionError()), 3, at_least=1, seed=0)
