"""The paper's rows against its text, and tables and figures run at a tiny scale."""

import dataclasses
import json
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import PoolSchedule, Recipe, data, evaluate, load_result
from rcig_eqx.data._sources import SOURCES
from rcig_eqx.methods import Frepo, Implicit, Rcig, Staged, frepo
from rcig_eqx.models._check import describe_model
from rcig_eqx.reproduce import METHODS, ROWS, SCALES, SETTINGS, TARGETS, Workshop, dry_run
from rcig_eqx.reproduce._figures import (
    _along,
    figure1,
    figure2,
    figure5,
    figure8,
    gallery,
    subset_ways,
)
from rcig_eqx.reproduce._plan import arguments, preprocess_of
from rcig_eqx.reproduce._privacy import membership
from rcig_eqx.reproduce._rows import TABLE_3
from rcig_eqx.reproduce._tables import (
    evaluation_network,
    run_notes,
    table1,
    table2,
    table3,
    table7,
    table8,
)
from rcig_eqx.reproduce._targets import find_rows
from rcig_eqx.reproduce._workshop import Interrupted, filed

TINY = SCALES["small"].changed(
    steps=2, width=2, batch_size=8, pool=1, networks=1, evaluation_steps=2
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Real images under the names of two data sets of the paper; CIFAR's are invented colors."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, each in (("train", 30), ("test", 3)):
        whole = data.load("fashion_mnist_small", split)
        chosen = np.concatenate([np.flatnonzero(whole.labels == c)[:each] for c in range(10)])
        sets = {
            "fashion_mnist": (whole.images[chosen], whole.class_names),
            "cifar10": (
                rng.integers(0, 256, (10 * each, 32, 32, 3), np.uint8),
                SOURCES["cifar10"].class_names,
            ),
        }
        for name, (images, names) in sets.items():
            (root / name).mkdir(exist_ok=True)
            np.savez(root / name / f"{split}.npz", images=images, labels=whole.labels[chosen],
                     class_names=names)  # fmt: skip
    return root


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, directory, said):
    folder = tmp_path_factory.mktemp("sets")
    return Workshop(folder, TINY, "frepo", directory=directory, say=said.append, progress=False)


FASHION, CIFAR = ROWS["fashion_mnist/1"], ROWS["cifar10/1"]

# Appendix C and Tables 7 and 8: steps, depth, λ/|S|, mirrored, backward pass, double precision,
# evaluation steps and augmentation.
STATED = {
    "mnist/1": (15_000, 3, 5e-4, False, None, False, 1000, False),
    "fashion_mnist/50": (5_000, 3, 5e-4, False, None, True, 2000, False),
    "cifar10/1": (15_000, 3, 5e-4, True, None, False, 1000, False),
    "cifar100/10": (5_000, 3, 5e-4, True, None, False, 2000, False),
    "cifar100/50": (4_000, 3, 5e-4, False, 2000, False, 2000, True),
    "tiny_imagenet/10": (2_000, 4, 5e-3, False, 500, False, 2000, True),
    "cub200/1": (10_000, 3, 5e-4, True, None, False, 2000, True),
    "imagenette/1": (6_000, 5, 5e-2, True, None, False, 1000, False),
    "imagenet64/2": (2_000, 4, 5e-3, False, 500, False, 2000, True),
}


@pytest.mark.parametrize("name", STATED)
def test_rows_are_what_the_paper_states(name):
    row = ROWS[name]
    found = (row.steps, row.depth, row.l2_rate, row.flip, row.subset, row.float64,
             SCALES["paper"].evaluation_steps_of(row), row.augment)  # fmt: skip
    assert found == STATED[name]


def test_every_row_of_tables_2_4_7_and_8_is_there_once():
    assert len(ROWS) == 22
    assert {row.images for row in ROWS.values()} >= {10, 100, 500, 1000, 5000, 2000}
    for target in TARGETS.values():
        assert [row.name for row in find_rows(target.rows)] == list(target.rows)
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist/1'"):
        find_rows(["fashon_mnist/1"])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_rows_values(method, settings):
    row = dataclasses.replace(ROWS["tiny_imagenet/10"], float64=False)
    given = arguments(row, SCALES["paper"], method, settings)
    assert given["steps"] == (1 if method == "random" else 2000)
    assert given["model"].depth == 4
    assert given["model"].width == 128
    used: Any = given["method"]
    parts: Any = (used.first, used.then) if isinstance(used, Staged) else (used,)
    for part in parts:
        if method != "random":
            assert (part.l2_rate, part.subset) == (5e-3, 500)
    if method not in ("default", "random"):
        code = settings == "authors_code"
        assert parts[0].margin == (code and method not in ("cig", "vig"))
        clips = code and method in ("rcig", "rcig_paper", "rig")
        assert getattr(parts[0], "clip", False) == clips
    if settings == "paper":
        assert given["batch_size"] == 1024
        assert isinstance(used, Implicit) == (method in ("rcig_paper", "rig", "cig", "vig"))


def test_double_precision_is_asked_for_where_the_paper_has_it():
    given = arguments(ROWS["mnist/50"], SCALES["paper"], "rcig_paper", "paper")
    assert given["method"].dtype == np.float64
    assert (
        arguments(ROWS["mnist/10"], SCALES["paper"], "rcig_paper", "paper")["method"].dtype is None
    )
    for settings in SETTINGS:  # every method can be made of such a row
        for method in METHODS:
            assert arguments(ROWS["mnist/50"], SCALES["small"], method, settings)["method"]


SMALL = {  # iterations, width, whether the default has exact ones, networks of an evaluation
    "fashion_mnist/1": (300, 32, True, 3),
    "fashion_mnist/10": (200, 32, True, 3),
    "cifar10/10": (200, 32, True, 1),
    "mnist/50": (100, 32, False, 1),
    "cifar100/50": (10, 32, False, 1),
    "tiny_imagenet/10": (25, 16, False, 1),
    "imagenette/10": (60, 8, True, 1),
    "imagenet64/1": (25, 16, False, 1),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_small_scale_bounds_what_a_row_costs(name):
    row, small = ROWS[name], SCALES["small"]
    steps, width, exact, networks = SMALL[name]
    assert (small.steps_of(row), small.width_of(row)) == (steps, width)
    assert small.networks_of(row) == networks
    assert small.changed(networks=3).networks_of(row) == 3
    trained = small.evaluation_steps_of(row)
    assert trained == SCALES["paper"].evaluation_steps_of(row)  # accuracy falls with fewer
    assert steps * row.mirrored_images <= 50_000
    assert networks == 1 or networks * trained * min(256, row.mirrored_images) <= 600_000
    given = arguments(row, small, "default")
    assert (given["steps"], given["model"].width) == (steps, width)
    assert isinstance(given["method"], Staged if exact else Frepo)
    assert isinstance(arguments(row, small, "rcig")["method"], Rcig)
    more = small.changed(steps=7, width=64, evaluation_steps=9)
    assert (more.steps_of(row), more.width_of(row), more.evaluation_steps_of(row)) == (7, 64, 9)


def test_networks_are_attacked_along_the_steps_asked_for():
    small = SCALES["small"]
    assert small.snapshots() == (125, 250, 500, 1000)
    assert small.changed(evaluation_steps=400).snapshots() == (50, 100, 200, 400)
    assert small.changed(evaluation_steps=2).snapshots() == (1, 2)


def test_large_images_are_whitened_in_blocks():
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), np.uint8)
    assert ROWS["imagenette/1"].block == 64
    assert ROWS["tiny_imagenet/1"].block is None
    whitened: Any = preprocess_of(CIFAR, images[:, :8, :8])
    assert whitened.block is None


def test_a_dry_run_counts_by_hand(workshop):
    found = dry_run(CIFAR, dataclasses.replace(workshop, scale=SCALES["small"], method="frepo"))
    w = 32
    convolutions = 9 * (3 * w + w * 2 * w + 2 * w * 4 * w) + 7 * w
    assert found["parameters"] == convolutions + 4 * 4 * 4 * w * 10 + 10
    assert found["images"] == (10, 32, 32, 3)
    assert found["mirrored"]
    assert found["steps"] == 300
    assert "MB" in found["memory"]


def test_table_2_is_filed_and_taken_from_there(workshop, said):
    first = table2(workshop, [FASHION])
    assert first.rows[0][:2] == ["Fashion-MNIST", "1"]
    assert first.rows[0][3] == ""  # the paper has no random images of it
    assert first.rows[0][5:] == ["79.8 ± 1.1", "75.6 ± 0.3"]
    before = len(said)
    assert table2(workshop, [FASHION]) == first
    assert len(said) == before  # nothing new was done
    again = table2(dataclasses.replace(workshop, scale=TINY.changed(networks=2)), [FASHION])
    # Of the set, and of random images.
    assert [text.split()[0] for text in said[before:]] == ["Evaluating"] * 2
    assert len(again.values["fashion_mnist/1"]["accuracies"]) == 2
    result = load_result(workshop.place(FASHION, 0) / "distilled.safetensors")
    assert result.recipe["steps_done"] == 2
    assert not list((workshop.place(FASHION, 0) / "checkpoints").glob("*.safetensors"))
    alone = evaluate(
        result, workshop.data(FASHION, "test"), key=jr.fold_in(jr.key(0), 2**31), num_networks=1,
        steps=2, progress=False,
    )  # fmt: skip
    assert alone.mean == pytest.approx(first.values["fashion_mnist/1"]["mean"])


def test_other_scales_are_filed_apart(workshop):
    folders = {
        dataclasses.replace(workshop, scale=TINY.changed(**c)).place(FASHION, 0)
        for c in ({}, {"steps": 3}, {"width": 3}, {"batch_size": 4})
    }
    assert len(folders) == 4
    more = dataclasses.replace(workshop, scale=TINY.changed(seeds=5, networks=9))
    assert more.place(FASHION, 0) == workshop.place(FASHION, 0)
    assert TINY.changed(steps=3, width=4).name == f"{TINY.name}-steps3-width4"  # as ever
    other = dataclasses.replace(workshop, settings="paper")
    assert other.place(FASHION, 0) != workshop.place(FASHION, 0)


def test_devices_share_what_is_distilled(workshop, tmp_path, monkeypatch):
    asked = {}

    def stop(train, **settings):
        asked.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("rcig_eqx.reproduce._workshop.distill", stop)
    shared = dataclasses.replace(workshop, folder=tmp_path, devices=jax.devices())
    with pytest.raises(KeyboardInterrupt):
        shared.distilled(FASHION)
    assert asked["devices"] == jax.devices()


def test_a_filed_set_of_other_settings_is_refused(workshop):
    workshop.distilled(FASHION)
    mistaken = dataclasses.replace(workshop, scale=dataclasses.replace(TINY, steps=3))
    with pytest.raises(ValueError, match="has steps 2, and 3 is asked for"):
        mistaken.distilled(FASHION)
    part = workshop.data(FASHION, "train").subset(np.arange(150))
    with pytest.raises(ValueError, match=r"has training images .*, and 150 is asked for"):
        workshop.distilled(FASHION, train=part)
    with pytest.raises(ValueError, match=r"has asked .*'l2_rate': 0.0005"):
        workshop.distilled(FASHION, changed={"method": frepo(l2_rate=0.1)})
    with pytest.raises(ValueError, match=r"'max_visit': 7.* is asked for"):
        workshop.distilled(FASHION, changed={"recipe": Recipe(pool=PoolSchedule(1, max_visit=7))})


def test_sets_of_other_versions_are_taken_with_a_remark(workshop, monkeypatch):
    workshop.distilled(FASHION)
    monkeypatch.setattr("rcig_eqx.reproduce._workshop.versions", lambda: {"jax": "99"})
    later = dataclasses.replace(workshop, remarks={})
    later.distilled(FASHION)
    (remark,) = later.remarks
    assert "was distilled before, by rcig-eqx" in remark


def test_what_is_filed_belongs_to_its_set(workshop, tmp_path):
    coreset, file = workshop.distilled(FASHION).coreset, tmp_path / "x.json"
    assert filed(file, (coreset,), lambda: {"mean": 1}) == {"mean": 1}
    assert filed(file, (coreset,), lambda: {"mean": 2}) == {"mean": 1}
    other = dataclasses.replace(coreset, labels=coreset.labels + 1)
    assert filed(file, (other,), lambda: {"mean": 3}) == {"mean": 3}


def test_a_run_given_up_is_taken_as_it_is_and_one_stopped_is_not(workshop, tmp_path, monkeypatch):
    whole = workshop.distilled(FASHION)

    def ended(rejected):
        history = {"rejected": np.asarray(rejected, np.float32)}
        recipe = whole.recipe | {"steps_done": 12, "steps": 20}
        result = dataclasses.replace(whole, history=history, recipe=recipe)
        monkeypatch.setattr("rcig_eqx.reproduce._workshop.distill", lambda *_, **__: result)

    scale = dataclasses.replace(TINY, steps=20)
    fresh = dataclasses.replace(workshop, scale=scale, folder=tmp_path, remarks={})
    ended([0] * 11 + [1])
    with pytest.raises(Interrupted):
        fresh.distilled(FASHION)
    ended([0] * 2 + [1] * 10)
    assert fresh.distilled(FASHION).interrupted
    (remark,) = fresh.remarks
    assert "diverged after 12 of 20 steps" in remark
    again = dataclasses.replace(fresh, remarks={})
    again.distilled(FASHION)
    assert list(again.remarks) == [remark]


def test_table_8_has_both_columns(workshop, tmp_path):
    report = table8(workshop, [FASHION])
    assert report.rows[0][4:] == ["79.8 ± 1.1", "70.5 ± 3.5"]
    found = report.values["fashion_mnist/1"]
    assert "augmentation" in found["augmented"]["training"]
    assert "augmentation" not in found["plain"]["training"]
    text, markdown, values = report.write(tmp_path)
    assert "79.8 ± 1.1" in text.read_text()
    assert markdown.read_text().startswith("# Table 8")
    assert json.loads(values.read_text())["values"]["fashion_mnist/1"]["plain"]["mean"] >= 0


def test_table_7_has_seconds_without_compilation(workshop):
    report = table7(workshop, [FASHION])
    assert len(report.values["fashion_mnist/1"]["seconds"]) == 1
    assert report.rows[0][4] == "0.16"


def test_the_gallery_and_a_run_along_time(workshop, tmp_path):
    report = gallery(workshop, [FASHION], tmp_path)
    pictures = sorted(p.name for p in tmp_path.iterdir())
    assert "![gallery-fashion_mnist-1](gallery-fashion_mnist-1.png)" in report.to_markdown()
    assert pictures == ["gallery-fashion_mnist-1.pdf", "gallery-fashion_mnist-1.png"]
    points = list(_along(workshop, FASHION))
    assert [step for step, _, _ in points] == [1, 2]
    assert points[0][1] == 0 < points[1][1]


@pytest.mark.parametrize(
    ("distilled_with", "names"),
    [
        ("none", "own own resnet-none resnet-batch vgg-batch alexnet-none"),
        ("batch", "own conv-none resnet-batch resnet-batch vgg-batch alexnet-none"),
    ],
)
def test_columns_of_table_3_are_filed_by_their_network(workshop, distilled_with, names):
    columns = [
        evaluation_network(column, CIFAR, workshop, distilled_with)
        for column in TABLE_3[distilled_with]
    ]
    assert [found[0] if found else "own" for found in columns] == names.split()
    for name, make in filter(None, columns):
        assert describe_model(make)["normalization"] == name.partition("-")[2]


@pytest.mark.slow
def test_tables_1_and_3_and_figure_5(workshop, tmp_path, said):
    report = table1(workshop, [FASHION])
    assert all(file.exists() for file in TARGETS["table1"].files(FASHION, workshop))
    names = "random vig cig rig rcig_paper rcig frepo frepo_platt default"
    assert [row[2] for row in report.rows] == names.split()
    table2(workshop, [CIFAR])
    said.clear()
    across = table3(workshop, [CIFAR])
    assert len(across.rows) == 12
    assert all(file.exists() for file in TARGETS["table3"].files(CIFAR, workshop))
    # The set's own network is Table 2's, and two columns of one network are one evaluation.
    evaluated = [text.split(", evaluation")[1] for text in said if text.startswith("Evaluating")]
    others = ["-resnet-batch", "-vgg-batch", "-alexnet-none"]
    names = ["-resnet-none", *others, "", "-conv-none", *others]
    assert evaluated == [f"{name}: 1 network, 2 steps" for name in names]
    assert [row[3] for row in across.rows][1:3] == ["conv-nn", "resnet-dn (resnet-none)"]
    figure5(workshop, [FASHION], tmp_path)
    files = TARGETS["figure5"].files(FASHION, workshop)
    assert len(files) == 4
    methods = [load_result(file).recipe["method"] for file in files]
    assert [method["subset"] for method in methods] == [1, 2, 4, None]
    assert (tmp_path / "figure5.png").stat().st_size > 10_000


def test_figure_5_counts_mirrored_images():
    sizes = [way["variant"] for way in subset_ways(ROWS["cifar10/10"], SCALES["small"])]
    assert sizes == ["-subset8", "-subset20", "-subset40", "-subset80", "-subset200"]


def test_membership_is_refused_where_images_are_not_in_memory(workshop, tmp_path):
    on_disk = dataclasses.replace(workshop, _sets={("fashion_mnist", "train"): object()})
    with pytest.raises(ValueError, match="sets in memory, which Fashion-MNIST is not"):
        membership("table6", on_disk, [FASHION], tmp_path)


@pytest.mark.slow
def test_membership_and_a_run_along_time_with_their_pictures(workshop, tmp_path, said):
    few = dataclasses.replace(TINY, chunks=1, attacked_at=(1, 2))
    small = dataclasses.replace(workshop, scale=few)
    report = membership("table6", small, [FASHION], tmp_path)
    assert [row[2] for row in report.rows] == ["real", "subset", "distilled"]
    assert "20 real images for every distilled one" in report.notes[0]
    before = len(said)
    assert membership("table6", small, [FASHION], tmp_path) == report
    assert len(said) == before  # the attacks were filed
    figure8(small, [FASHION], tmp_path)
    assert all(file.exists() for file in TARGETS["figure8"].files(FASHION, small))
    for name in ("table6-fashion_mnist-1.png", "figure8.png"):
        assert (tmp_path / name).stat().st_size > 10_000


GRID = [(0, 0), (0, 2), (2, 0), (2, 2)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The inverse-Hessian descent ended above")  # of two channels
@pytest.mark.parametrize("figure", [figure1, figure2])
def test_the_grids_of_figures_1_and_2(workshop, tmp_path, figure):
    scale = dataclasses.replace(TINY, counts=(0, 2))
    report = figure(dataclasses.replace(workshop, scale=scale), [FASHION], tmp_path)
    found = report.values["fashion_mnist/1"]
    spread = [found[i][j]["accuracies"] if figure is figure2 else found[i][j] > 0 for i, j in GRID]
    assert all(spread)
    assert [row[:2] for row in report.rows] == [["fashion_mnist/1", "0"], ["fashion_mnist/1", "2"]]
    assert (tmp_path / f"{figure.__name__}.pdf").stat().st_size > 5_000
    target, grid = TARGETS[figure.__name__], dataclasses.replace(workshop, scale=scale)
    made = [load_result(file).recipe["method"] for file in target.files(FASHION, grid)]
    assert [(method["inner"]["steps"], method["solver"]["steps"]) for method in made] == GRID


def test_a_set_too_large_for_exact_steps_is_the_head_only_one(workshop):
    small, row = SCALES["small"], ROWS["cifar100/1"]
    assert [small.method(row, name) for name in ("default", "rcig")] == ["frepo_platt", "rcig"]
    assert SCALES["paper"].method(row, "default") == "default"
    given = dataclasses.replace(workshop, scale=small, method="default")
    assert given.place(row, 0) == given.place(row, 0, method="frepo_platt")
    rows = [ROWS["cifar10/1"], row]
    for said_of in (run_notes(given, rows), run_notes(given, rows, "each")):
        assert "300 outer iterations, width 32 (cifar10/1); 200 outer iterations" in said_of
        assert "width 32, frepo_platt for default (cifar100/1)" in said_of
    head_only = dataclasses.replace(given, method="frepo")
    assert "default" not in run_notes(head_only, rows)


def test_preprocessing_is_fitted_once_and_filed(workshop, said):
    fitted = workshop._fitted(CIFAR)
    before = len(said)
    again = dataclasses.replace(workshop, _sets={})
    assert eqx.tree_equal(again._fitted(CIFAR), fitted)
    assert len(said) == before
    (file,) = workshop.folder.glob("cifar10-*-preprocess.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(data.DataError, match=r"preprocess\.safetensors is damaged"):
        dataclasses.replace(workshop, _sets={})._fitted(CIFAR)
    file.unlink()


def test_splits_with_other_classes_are_refused(workshop):
    train = workshop.data(FASHION, "train")
    other = dataclasses.replace(train, class_names=tuple(reversed(train.class_names)))
    mixed = dataclasses.replace(workshop, _sets={("fashion_mnist", "train"): other})
    with pytest.raises(data.DataError, match="do not have the same classes in the same order"):
        mixed.data(FASHION, "test")
