"""Every row of Tables 2 and 4, end to end, from small archives in the official layouts.

At width 2 and two iterations; with `RCIG_EQX_SMALL=1` at the small scale, but for evaluation: one
network, trained for 100 steps.
"""

import dataclasses
import functools
import os

import pytest

from official_files import (
    cub_files,
    imagenette_files,
    random_pixels,
    random_set,
    tiny_imagenet_files,
    write_cifar,
    write_files,
    write_idx,
    write_imagenet_batches,
)
from rcig_eqx import load_result
from rcig_eqx._recipe import default_batch_size
from rcig_eqx.data import _imagenet, _load
from rcig_eqx.data._layouts import IMAGENETTE_CLASSES, IMAGEWOOF_CLASSES
from rcig_eqx.reproduce import ROWS, SCALES, Workshop
from rcig_eqx.reproduce._rows import TABLE_2
from rcig_eqx.reproduce._tables import table2, table4

pytestmark = pytest.mark.slow

SMALL = SCALES["small"].changed(networks=1, evaluation_steps=100)
TINY = SMALL.changed(steps=2, width=2, batch_size=8, pool=1, evaluation_steps=2)
SCALE = SMALL if os.environ.get("RCIG_EQX_SMALL") else TINY
EACH = {name: max(r.images_per_class for r in ROWS.values() if r.dataset == name)
        for name in {row.dataset for row in ROWS.values()}}  # fmt: skip


def counts_of(row):
    """Images for the data set's largest row and its outer batch, and one a class to test on."""
    each, classes = EACH[row.dataset], row.facts.classes
    train = classes * max(each, -(-default_batch_size(each * classes) // classes))
    # The writer of CUB-200 lists training and test images in turn.
    return {"train": train, "test": train if row.dataset == "cub200" else row.facts.classes}


def pixels_of(row):
    shape = row.facts.shape[:2]
    return {s: random_pixels(n, shape, seed=i) for i, (s, n) in enumerate(counts_of(row).items())}


def write_idx_files(folder, row):
    for split, count in counts_of(row).items():
        write_idx(folder / row.dataset, split, *random_set(count, row.facts.shape, 10))


def write_cifar_archive(folder, row):
    for split, count in counts_of(row).items():
        images, labels = random_set(count, row.facts.shape, row.facts.classes)
        write_cifar(
            folder / row.dataset, row.dataset, "binary", split, images, labels, archive=False
        )


def write_tiny_imagenet(folder, row):
    words = dict.fromkeys([f"n{i:08}" for i in range(200)], "a word")
    write_files(
        folder / "tiny-imagenet-200.zip", tiny_imagenet_files(pixels_of(row), words)[0], "zip"
    )


def write_cub(folder, row):
    files = cub_files(pixels_of(row), [f"{i + 1:03}.Bird_{i}" for i in range(200)])[0]
    write_files(folder / "CUB_200_2011.tgz", files, "tgz")


def write_imagenette(folder, row):
    classes = {"imagenette": IMAGENETTE_CLASSES, "imagewoof": IMAGEWOOF_CLASSES}[row.dataset]
    files = imagenette_files(pixels_of(row), f"{row.dataset}2-160", list(classes))[0]
    write_files(folder / f"{row.dataset}2-160.tgz", files, "tgz")


def write_imagenet(folder, row):
    write_imagenet_batches(folder / "imagenet64", pixels_of(row), row.facts.classes)


WRITE = {
    "mnist": write_idx_files,
    "fashion_mnist": write_idx_files,
    "cifar10": write_cifar_archive,
    "cifar100": write_cifar_archive,
    "tiny_imagenet": write_tiny_imagenet,
    "cub200": write_cub,
    "imagenette": write_imagenette,
    "imagewoof": write_imagenette,
    "imagenet64": write_imagenet,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a row's data set, whose files are written once for all of its rows."""

    @functools.cache
    def folder(dataset):
        place = tmp_path_factory.mktemp(dataset)
        WRITE[dataset](place, next(row for row in ROWS.values() if row.dataset == dataset))
        return place

    return folder


@pytest.mark.parametrize("name", ROWS)
def test_a_row_runs_from_the_official_files_to_its_table(name, written, monkeypatch):
    row = ROWS[name]
    folder = written(row.dataset)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    counts = counts_of(row)
    monkeypatch.setattr(_imagenet, "COUNTS", counts)
    if row.dataset in _load.SOURCES and _load.SOURCES[row.dataset].counts:
        source = dataclasses.replace(_load.SOURCES[row.dataset], counts=counts)
        monkeypatch.setitem(_load.SOURCES, row.dataset, source)
    workshop = Workshop(folder / "sets", SCALE, directory=folder, progress=False)
    report = (table2 if row in TABLE_2 else table4)(workshop, [row])
    assert report.rows[0][5] == f"{row.paper[0]} ± {row.paper[1]}"
    result = load_result(workshop.place(row, 0) / "distilled.safetensors")
    assert result.coreset.images.shape == (row.images, *row.facts.shape)
    assert result.coreset.labels.shape == (row.images, row.facts.classes)
    assert result.recipe["steps_done"] == SCALE.steps_of(row)
    assert not result.history["rejected"].any()
