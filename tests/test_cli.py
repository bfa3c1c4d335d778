import dataclasses
import errno
import html
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest

pytest.importorskip("typer")

from _shell import run, shades
from rcig_eqx import (
    Checkpoints,
    convnet_for,
    data,
    distill,
    evaluation,
    initializers,
    load_export,
    load_result,
    methods,
    models,
    parameterizations,
    platt_loss,
    run as rcig_run,
)
from rcig_eqx._cli import _judge
from rcig_eqx.reproduce import _command
from rcig_eqx.reproduce._report import Report
from rcig_eqx.reproduce._rows import TABLE_2
from rcig_eqx.reproduce._tables import METHODS_TAKEN_APART
from rcig_eqx.reproduce._targets import TARGETS

SMALL = ["--width", "2", "--depth", "1", "--batch-size", "6", "--method", "frepo"]
KEPT = {"distilled.safetensors", "evaluation.json", "metrics.jsonl", "report.html"}
FEW = ["--networks", "2", "--evaluation-steps", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shades(tmp_path_factory.mktemp("data"))


def metrics(out) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    """The folder of one whole run."""
    out = tmp_path_factory.mktemp("runs") / "new" / "shades"
    assert run("distill", folder, "-n", 2, "--steps", 3, *SMALL, *FEW, "--out", out) == 0
    return out


def test_a_set_too_large_for_memory_is_opened_on_disk(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    labels, opened = np.arange(20) % 2, []

    def open_records(name, split, *, directory):
        opened.append((name, split, directory))
        place = tmp_path / split
        if place.exists():
            return data.Records(place)
        images = rng.integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
        return data.write_records((images, labels), place, progress=False)

    monkeypatch.setattr("rcig_eqx._cli._images.open_records", open_records)
    out, where = tmp_path / "out", ["--directory", tmp_path]
    assert run("distill", "imagenet64", "--steps", 2, *SMALL, *FEW, *where, "--out", out) == 0
    assert opened == [("imagenet64", "train", tmp_path), ("imagenet64", "test", tmp_path)]
    assert json.loads((out / "evaluation.json").read_text())["test_images"] == 20


def test_the_page_has_the_command_that_repeats_the_run(out, folder, tmp_path, monkeypatch):
    result = load_result(out / "distilled.safetensors")
    command = shlex.split(result.recipe["command"])
    assert command[:3] == ["rcig-eqx", "distill", folder.name]
    assert "--out" not in command
    assert html.escape(result.recipe["command"]) in (out / "report.html").read_text()
    monkeypatch.chdir(folder.parent)
    assert run(*command[1:], "--out", tmp_path / "again") == 0
    again = load_result(tmp_path / "again" / "distilled.safetensors")
    assert again.recipe == result.recipe
    assert np.array_equal(again.coreset.images, result.coreset.images)


def test_the_page_says_what_all_of_the_data_give(out, folder, tmp_path, capsys):
    text = (out / "report.html").read_text()
    assert "not measured" in text
    assert "rcig-eqx evaluate distilled.safetensors --full --report report.html" in text
    page = tmp_path / "page.html"
    asked = ["evaluate", out / "distilled.safetensors", "--data", folder, *FEW, "--report", page]
    assert run(*asked, "--full", "--epochs", 2, "--quiet") == 0
    said = re.search(r"All of the training data: (\S+%)", capsys.readouterr().out)
    assert said
    assert "not measured" not in page.read_text()
    assert said[1] in page.read_text()
    assert run(*asked, "--full-accuracy", 0.875) == 0
    assert "87.50%" in page.read_text()


def test_all_of_the_data_are_not_what_is_tested_on(out, folder, capsys):
    asked = ["evaluate", out / "distilled.safetensors", "--data", folder, "--split", "train", *FEW]
    assert run(*asked, "--full") == 2
    assert "--full has no training images" in capsys.readouterr().err


def test_more_logs_are_asked_for_by_name(folder, tmp_path):
    options = [*SMALL, "--steps", 2, "--no-evaluate", "--out", tmp_path]
    assert run("distill", folder, *options, "--log", "csv", "--log", "jsonl") == 0
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]


def test_distill_writes_a_set_a_picture_and_a_report(out, folder):
    files = {*KEPT, "distilled.png", "checkpoints", "run.toml"}
    assert {path.name for path in out.iterdir()} == files
    result = load_result(out / "distilled.safetensors")
    assert result.coreset.images.shape == (4, 8, 8, 1)
    assert result.class_names == ("dark", "bright")
    assert result.recipe["dataset"] == folder.name  # and not where it was
    for file in map(out.joinpath, KEPT):
        assert str(folder.parent).encode() not in file.read_bytes()
    model = {"name": "ConvNet", "width": 2, "depth": 1, "normalization": "none"}
    model |= {"activation": "relu"}
    assert result.recipe["model"] == model
    assert result.recipe["method"]["name"] == "Frepo"
    report = json.loads((out / "evaluation.json").read_text())
    for numbers in (report, report["baseline"]):
        assert len(numbers["accuracies"]) == 2
        assert numbers["mean"] == pytest.approx(np.mean(numbers["accuracies"]))
        assert numbers["interval"][0] < numbers["mean"] < numbers["interval"][1]
        assert numbers["std"] == pytest.approx(np.std(numbers["accuracies"], ddof=1))
        assert numbers["per_class"].keys() == {"dark", "bright"}
    assert report["recipe"] == result.recipe
    assert (report["seed"], report["split"], report["test_images"]) == (0, "test", 20)


def test_evaluate_repeats_what_distill_measured(out, folder, capsys, tmp_path):
    json_ = tmp_path / "new" / "report.json"
    few = [out / "distilled.safetensors", "--networks", 2, "--steps", 3, "--json", json_]
    assert run("evaluate", *few) == 2
    assert "distilled from shades, which is not here" in capsys.readouterr().err
    assert run("evaluate", *few, "--data", folder) == 0
    assert json.loads(json_.read_text()) == json.loads((out / "evaluation.json").read_text())
    text = capsys.readouterr().out
    for part in (
        "bits per class on 20 images of",
        "distilled set",
        "random real",
        f"Wrote {json_}",
    ):
        assert part in text


def test_judge_prints_and_writes_one_table_of_a_file_or_an_export(out, folder, capsys, tmp_path):
    json_, markdown = tmp_path / "new" / "judgement.json", tmp_path / "judgement.md"
    few = ["--networks", 2, "--steps", 3, "--data", folder, "--epochs", 2]
    files = ["--json", json_, "--markdown", markdown]
    assert run("judge", out / "distilled.safetensors", *few, *files) == 0
    text = capsys.readouterr().out
    for part in ("20 images of", "random real, as many bits", "HLR", "PGD", "2 epochs"):
        assert part in text
    assert re.search(f"Wrote {json_}\n +{markdown}", text)
    content = json.loads(json_.read_text())
    assert content["protocol"]["tested_on"] == {"dataset": "shades", "images": 20}
    assert content["protocol"]["training"]["network"]["width"] == 2  # as distilled
    assert content["protocol"]["attacks"]["images"] == 20
    evaluated = json.loads((out / "evaluation.json").read_text())
    rows = {row["trained_on"]: row for row in content["rows"]}
    learned = rows["distilled, learned labels"]
    assert learned["plain"]["accuracies"] == evaluated["accuracies"]  # of the same seed
    assert rows["all training data"]["augmented"] is None
    assert markdown.read_text().startswith("| trained on | images per class |")
    exported = tmp_path / "export"
    assert run("export", out / "distilled.safetensors", exported) == 0
    less = ["--no-full", "--bits-per-class", 600, "--width", 3, "--json", json_, "--quiet"]
    assert run("judge", exported, *few, *less) == 0
    content = json.loads(json_.read_text())
    assert content["protocol"]["training"]["network"]["width"] == 3
    assert content["protocol"]["bits_per_class"] == 600
    assert "all training data" not in {row["trained_on"] for row in content["rows"]}


def test_judge_takes_the_set_of_another_project(folder, capsys, tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    labels = np.repeat(np.eye(2, dtype=np.float32) - 0.5, 2, axis=0)
    np.savez(tmp_path / "set.npz", image=images, label=labels)
    few = ["--networks", 1, "--steps", 2, "--no-full", "--width", 2, "--json", tmp_path / "j.json"]
    told = ["--data", folder, "--preprocess", "standardize", "--flip"]
    assert run("judge", tmp_path / "set.npz", *told, *few) == 0
    assert "k-means centroids" in capsys.readouterr().out
    content = json.loads((tmp_path / "j.json").read_text())
    assert content["protocol"]["training"]["mirrored"]
    assert content["rows"][0]["images_per_class"] == 2


def test_judge_takes_pixels_a_rate_and_a_known_accuracy(folder, capsys, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "set.npz", image=pixels, label=np.repeat([0, 1], 2))
    loaded = []
    load = _judge.load_split
    monkeypatch.setattr(_judge, "load_split", lambda *args: loaded.append(args[1]) or load(*args))
    few = ["--networks", 1, "--steps", 2, "--width", 2, "--json", tmp_path / "j.json", "--quiet"]
    told = ["--data", folder, "--pixels", "--learning-rate", 0.003, "--full-accuracy", 0.9]
    assert run("judge", tmp_path / "set.npz", *told, *few) == 0
    assert loaded == ["train"]  # once
    content = json.loads((tmp_path / "j.json").read_text())
    assert content["protocol"]["training"]["learning_rate"]["peak"] == 0.003
    rows = {row["trained_on"]: row for row in content["rows"]}
    assert rows["all training data"]["plain"]["accuracies"] == [0.9]


def test_judge_takes_the_constants_and_class_names_of_a_data_set(folder, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.zeros(4, 1, 8, 8), tmp_path / "images_best.pt")
    torch.save(torch.tensor([0, 0, 1, 1]), tmp_path / "labels_best.pt")
    asked = _judge.JudgeOptions(tmp_path, str(folder), "mnist")
    found, train = _judge._published(asked)
    assert found.coreset.preprocess is not None
    black = found.coreset.preprocess(np.zeros((1, 8, 8, 1), np.float32))
    assert np.asarray(black) == pytest.approx(-0.1307 / 0.3081)
    assert found.class_names == train.class_names == ("dark", "bright")
    with pytest.warns(UserWarning, match="authors of the layout 'mtt' whiten in another way"):
        _judge._published(dataclasses.replace(asked, preprocess="zca"))


def test_judge_needs_both_splits(out, folder, capsys):
    assert run("judge", out / "distilled.safetensors") == 2
    assert "distilled from shades, which is not here" in capsys.readouterr().err
    assert run("judge", out / "distilled.safetensors", "--data", folder / "test.npz") == 2
    assert "has no train and test split" in capsys.readouterr().err


def test_devices_are_the_first_that_jax_sees_and_workers_as_many_as_asked_for(
    tmp_path, monkeypatch
):
    asked = {}
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    folder = tmp_path / "pictures"

    def stop(train, **settings):
        asked.update(settings, workers=train.workers)
        raise ValueError("enough")

    monkeypatch.setattr("rcig_eqx._cli._distill.distill", stop)
    monkeypatch.setattr("rcig_eqx._cli._held_out.load_split", lambda *_: data.ImageFolder(folder))
    three = jax.devices() * 3
    monkeypatch.setattr(jax, "devices", lambda: three)
    both = ["--devices", 2, "--workers", 3]
    assert run("distill", folder, *both, "--out", tmp_path / "o", *SMALL) == 2
    assert asked["devices"] == three[:2]
    assert asked["workers"] == 3
    assert run("distill", folder, "--out", tmp_path / "o", *SMALL) == 2
    assert asked["devices"] is None
    assert asked["workers"] == 0


def test_an_earlier_result_is_kept(out, folder, capsys):
    before = (out / "distilled.safetensors").read_bytes()
    assert run("distill", folder, *SMALL, "--out", out) == 2
    assert "pass --overwrite, another --out" in capsys.readouterr().err
    assert (out / "distilled.safetensors").read_bytes() == before


def test_ctrl_c_keeps_the_result_so_far_and_resume_goes_on(folder, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        press = lambda report: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        return distill(*arguments, **options | {"callbacks": [press]})

    monkeypatch.setattr("rcig_eqx._cli._distill.distill", interrupted)
    monkeypatch.chdir(tmp_path)
    assert run("distill", folder, "--steps", 50, *SMALL) == 130
    text = capsys.readouterr().out
    assert "Stopped after step 1 of 50. The result so far is kept" in text
    out = tmp_path / "runs" / "shades-1ipc"
    assert load_result(out / "distilled.safetensors").interrupted
    assert "stopped after step 1 of 50" in (out / "report.html").read_text()
    assert not (out / "evaluation.json").exists()
    # And goes on from there, or starts anew, but neither by accident.
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    arguments = ("distill", folder, "--steps", 50, *SMALL, *FEW)
    assert run(*arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(*arguments, "--resume", "--steps", 4) == 0
    done = load_result(out / "distilled.safetensors")
    assert done.recipe["steps_done"] == 4
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]
    assert [line["loss"] for line in metrics(out)] == done.history["loss"].tolist()
    assert run("distill", folder, "--steps", 4, *SMALL, *FEW, "--out", tmp_path / "whole") == 0
    whole = load_result(tmp_path / "whole" / "distilled.safetensors")
    assert np.array_equal(done.coreset.images, whole.coreset.images)
    shutil.rmtree(out / "checkpoints")
    assert run(*arguments, "--resume") == 2
    assert "no checkpoint of its run" in capsys.readouterr().err


def test_the_best_set_on_held_out_images_is_kept(folder, tmp_path, capsys, monkeypatch):
    """A scripted test of accuracies 1, 3, 2, 2 at every other step; the fourth ends the run."""
    import rcig_eqx.evaluation._best as best
    from rcig_eqx._cli import _distill

    seen, scripted = [], iter([0.1, 0.3, 0.2, 0.2])
    real = best.evaluate

    def test(result, validation, **options):
        report = real(result, validation, **options)
        seen.append((result, validation))
        return dataclasses.replace(report, accuracies=np.full(3, next(scripted)))

    def final(result, test, **options):
        seen.append((result, test))
        return real(result, test, **options)

    monkeypatch.setattr(best, "evaluate", test)
    monkeypatch.setattr(_distill, "evaluate", final)
    few = ["--validation", 0.2, "--patience", 2, "--test-every", 2]
    arguments = ["distill", folder, "--steps", 50, *SMALL, *FEW, *few]
    assert run(*arguments, "--out", tmp_path) == 0
    text = capsys.readouterr().out
    assert "Held out 4 of 20 training images to choose a set by." in text
    assert "Ended early, as no later set was better. Kept the set of step 4 of 8: 30.0% on" in text
    assert "on 4 validation images, 20.0% at the last test." in text
    whole, left = data.load(str(folder), "train"), data.load(str(folder), "test")
    held = seen[0][1]
    assert np.bincount(held.labels).tolist() == [2, 2]
    rows = {image.tobytes() for image in whole.images}
    assert {image.tobytes() for image in held.images} <= rows  # of the train split
    tested = [images for _, images in seen]
    assert all(images is held for images in tested[:4])
    assert len(tested) == 5  # and the test set once, at the end
    np.testing.assert_array_equal(tested[-1].images, left.images)
    kept, fourth = load_result(tmp_path / "distilled.safetensors"), seen[1][0]
    np.testing.assert_array_equal(kept.coreset.images, fourth.coreset.images)
    assert not np.array_equal(kept.coreset.images, seen[3][0].coreset.images)
    np.testing.assert_array_equal(seen[-1][0].coreset.images, kept.coreset.images)
    chosen = {"validation": 0.2, "kept_step": 4, "validation_accuracy": 0.3, "steps_done": 8}
    assert chosen.items() <= kept.recipe.items()
    assert len(kept.history["loss"]) == 8

    # Resumed, the best of before is tested first, and stays where nothing is better.
    scripted = iter([0.3, 0.1, 0.2])
    assert run(*arguments, "--resume", "--out", tmp_path) == 0
    assert "Kept the set of step 4 of 12: 30.0% on 4" in capsys.readouterr().out
    again = load_result(tmp_path / "distilled.safetensors")
    np.testing.assert_array_equal(again.coreset.images, kept.coreset.images)
    # With other images it is another run.
    other = ["distill", folder, "--validation", 0.3, "--resume", "--out", tmp_path]
    assert run(*other) == 2
    assert "--validation is 0.3, and is 0.2 in" in capsys.readouterr().err
    # Anew, the earlier best counts for nothing.
    scripted = iter([0.05, 0.04, 0.03])
    assert run(*arguments, "--overwrite", "--out", tmp_path) == 0
    assert "Kept the set of step 2 of 6: 5.0% on 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--validation", 1.5], "Error: --validation cannot be held out: part is 1.5"),
        (["--validation", 0.99], "--validation cannot be held out: part is 0.99, which of the 10"),
        (["--patience", 0], "Invalid value for '--patience'"),
        (["--augment", "flop"], "augmentation is 'flop': did you mean 'flip'"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused_before_the_run(
    options, said, folder, tmp_path, capsys
):
    assert run("distill", folder, *SMALL, *options, "--out", tmp_path / "o") == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o" / "distilled.safetensors").exists()


def test_a_run_is_augmented_by_name(folder, tmp_path):
    arguments = ["--steps", 2, *SMALL, "--no-evaluate", "--quiet", "--out", tmp_path]
    assert run("distill", folder, "--augment", "flip_crop", *arguments) == 0
    told = load_result(tmp_path / "distilled.safetensors").recipe["augment"]
    assert "strategy='flip_crop'" in told
    assert run("distill", folder, "--augment", "paper", "--overwrite", *arguments) == 0
    told = load_result(tmp_path / "distilled.safetensors").recipe["augment"]
    assert "strategy='crop_rotate_translate_cutout'" in told


def test_ctrl_c_during_the_evaluation_keeps_the_result(folder, out, tmp_path, monkeypatch, capsys):
    result = load_result(out / "distilled.safetensors")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rcig_eqx._cli._distill.distill", lambda *_, **__: result)
    monkeypatch.setattr("rcig_eqx._cli._distill.evaluate", interrupted)
    options = [*SMALL, "--steps", 1, "--quiet", "--overwrite", "--out", tmp_path]
    assert run("distill", folder, *options) == 130
    assert "The distilled set is kept" in capsys.readouterr().out
    assert (tmp_path / "distilled.png").exists()


def test_one_split_is_distilled_and_can_be_evaluated_on(folder, tmp_path, capsys, monkeypatch):
    options = ["--width", 2, "--depth", 1, "--steps", 1, "--out", tmp_path]  # a small set: batch 20
    assert run("distill", folder / "train.npz", *options, "--hold-out", 0) == 0
    assert "no test split: not evaluated" in capsys.readouterr().out
    assert not (tmp_path / "evaluation.json").exists()
    result = tmp_path / "distilled.safetensors"
    assert load_result(result).recipe["batch_size"] == 20
    few = ["--networks", 1, "--evaluation-steps", 2, "--quiet"]
    monkeypatch.chdir(folder)
    assert run("evaluate", result, *few) == 2  # not on what it was distilled from
    assert "no test split: name other images with --data" in capsys.readouterr().err
    assert run("evaluate", result, "--data", folder / "test.npz", *few) == 0
    assert "random real" in capsys.readouterr().out


def test_ctrl_c_twice_says_what_is_kept(folder, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rcig_eqx._cli._distill.distill", interrupted)
    assert run("distill", folder, "--quiet", "--out", tmp_path / "o") == 130
    assert "Stopped at once" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_export_takes_the_evaluation_beside_the_file(out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "rcig_eqx._cli._evaluate.evaluate", lambda *_, **__: pytest.fail("measured again")
    )
    place = tmp_path / "new" / "e"
    assert run("export", out / "distilled.safetensors", place) == 0
    assert capsys.readouterr().out.endswith(f"evaluation.json.\nWrote {place}\n")
    report = json.loads((out / "evaluation.json").read_text())
    stated = load_export(place).card["evaluation"]
    assert stated["accuracies"] == report["accuracies"]
    assert stated["baseline"] == report["baseline"]
    assert stated["training"]["network"]["width"] == 2
    assert stated["tested_on"]["images"] == 20
    assert run("export", out / "distilled.safetensors", place) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert run("export", out / "distilled.safetensors", place, "--overwrite") == 0


def test_export_evaluates_what_has_not_been(out, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    shutil.copy(out / "distilled.safetensors", tmp_path)
    assert run("export", tmp_path / "distilled.safetensors", *FEW, "--quiet") == 0
    stated = load_export(tmp_path / "export").card["evaluation"]
    report = json.loads((out / "evaluation.json").read_text())
    assert stated == {name: report[name] for name in stated}  # the same seed


def test_export_refuses_the_evaluation_of_another_result(out, tmp_path, capsys):
    report = json.loads((out / "evaluation.json").read_text())
    report["recipe"]["seed"] = 7
    other, damaged = tmp_path / "other.json", tmp_path / "damaged.json"
    other.write_text(json.dumps(report))
    damaged.write_text("[" * 100_000)
    for file, says in ((other, "of another result"), (damaged, "is no evaluation")):
        options = [tmp_path / "e", "--evaluation", file]
        assert run("export", out / "distilled.safetensors", *options) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "e").exists()


@pytest.fixture
def command() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the command in a process of its own, which ends with the test."""
    started: list[subprocess.Popen] = []

    def start(*arguments: object, **options: Any) -> subprocess.Popen:
        # A test may itself be run by nohup, which has what it starts ignore the signal.
        usual = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
        program = f"{usual}; from rcig_eqx._cli import run; run()"
        line = [sys.executable, "-c", program, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(line, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def written(out) -> set[str]:
    return {path.name for path in out.iterdir()} - {"checkpoints", "distilled.png", "run.toml"}


CANNOT = {  # what standard output does, and the status then
    "a pipe that nobody reads": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 1),
    "a terminal that was closed": (OSError(errno.EIO, "Input/output error"), 1),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_printed_loses_nothing(case, folder, tmp_path, monkeypatch):
    error, status = CANNOT[case]

    class Failing(io.StringIO):
        def write(self, _):
            raise error

    monkeypatch.setattr(sys, "stdout", Failing())
    monkeypatch.setattr(sys, "stderr", Failing())
    assert run("distill", folder, "--steps", 1, *SMALL, *FEW, "--out", tmp_path) == status
    assert written(tmp_path) == KEPT


def test_names_that_the_terminal_cannot_show_lose_nothing(folder, tmp_path, monkeypatch):
    names = ["猫\x1b[31m", "\udcff"]
    for split in ("train", "test"):
        with np.load(folder / f"{split}.npz") as arrays:
            kept = {name: arrays[name] for name in ("images", "labels")}
        np.savez(tmp_path / split, **kept, class_names=names)
    shown = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", shown)
    out = tmp_path / "out"
    assert run("distill", tmp_path, "--steps", 1, *SMALL, *FEW, "--out", out) == 0
    assert written(out) == KEPT
    text = shown.buffer.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert b"\\u732b\\x1b[31m" in text
    assert load_result(out / "distilled.safetensors").class_names == tuple(names)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_run_in_a_folder_keeps_others_out_and_its_end_is_told(command, folder, tmp_path, capsys):
    """Others are refused by its name; hung up, it keeps what there is; killed, it holds nothing."""
    out = tmp_path / "out"
    arguments = ["distill", folder, "--steps", 10**6, *SMALL, "--no-evaluate", "--out", out]
    first = command(*arguments, "--checkpoint-every", 0, start_new_session=True)
    until(lambda: any((out / "checkpoints").glob("*.safetensors")))
    part = out / "checkpoints" / ".step-00000009.safetensors.abc.part"
    part.touch()
    for more in ([], ["--resume"], ["--overwrite"]):
        assert run(*arguments, *more) == 2
        assert f"in use by process {first.pid} on {socket.gethostname()}" in capsys.readouterr().err
    folder_of = distilled(folder, checkpoint_dir=Checkpoints(out / "checkpoints", resume=True))
    with pytest.raises(BlockingIOError, match=f"process {first.pid}"):
        folder_of()
    assert part.exists()
    first.send_signal(signal.SIGHUP)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGHUP
    assert b"The result so far is kept" in said
    done = load_result(out / "distilled.safetensors").recipe["steps_done"]
    assert done > 0

    second = command(*arguments, "--resume", "--checkpoint-every", 0)
    until(lambda: last_step(out) > done)
    second.kill()
    second.communicate()
    before = last_step(out)
    third = command(*arguments, "--resume", "--checkpoint-every", 0)
    until(lambda: last_step(out) > before)
    assert not part.exists()
    third.send_signal(signal.SIGTERM)
    third.communicate(timeout=120)
    assert third.returncode == 128 + signal.SIGTERM
    assert not list(out.rglob(".*"))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def last_step(out) -> int:
    names = [path.stem for path in (out / "checkpoints").glob("*.safetensors")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def distilled(folder, **options: Any) -> Callable[[], Any]:
    train = data.load(folder, "train")
    model = convnet_for(train.image_shape, 2, width=2, depth=1)
    options |= {"key": jax.random.key(0), "model": model, "steps": 1, "progress": False}
    return lambda: distill(train, images_per_class=1, **options)


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_any_channels_end_no_command(channels, tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(12) % 2
    for split in ("train", "test"):
        images = rng.integers(0, 256, (12, 8, 8, channels)).astype(np.uint8)
        np.savez(tmp_path / split, images=images, labels=labels, class_names=["Ba$$in", "$x$"])
    out = tmp_path / "out"
    assert run("distill", tmp_path, "--steps", 1, *SMALL, *FEW, "--out", out) == 0
    assert {path.name for path in out.iterdir()} >= {"distilled.png", "evaluation.json"}
    assert run("export", out / "distilled.safetensors", tmp_path / "e") == 0
    assert load_export(tmp_path / "e").card["pictures"]["all"] == "grid.png"


@pytest.mark.filterwarnings("default:No picture")
def test_no_picture_is_a_note(folder, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr("rcig_eqx._cli._distill.save_grid", fail)
    assert run("distill", folder, "--steps", 1, *SMALL, *FEW, "--out", tmp_path) == 0
    assert "No picture: no font" in capsys.readouterr().err
    assert written(tmp_path) == KEPT


def test_a_tilde_is_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(folder, tmp_path / "shades")
    few = [*SMALL, *FEW, "--steps", 1]
    assert run("distill", "~/shades", *few, "--out", "~/out") == 0
    file, json_ = "~/out/distilled.safetensors", ["--json", "~/report.json"]
    assert run("evaluate", file, "--data", "~/shades", *FEW, *json_) == 0
    assert run("export", file, "~/e", "--evaluation", "~/report.json") == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"shades", "out", "e", "report.json"}


ERRORS = {
    "unknown data": ("distill fasion_mnist", "Did you mean 'fashion_mnist'"),
    "no such file": ("distill {folder}/none.npz", "check the path"),
    "out is below a file": ("distill --out {folder}/train.npz/x", "Cannot write to .*another"),
    "learning rate": ("distill --learning-rate -1", "--learning-rate is -1.0: it must be positive"),
    "no images": ("distill {folder} -n 0 --out {out}", "--images-per-class is 0"),
    "all held out": ("distill {folder} --hold-out 1.5 --out {out}", "--hold-out is 1.5: choose a"),
    "no size": ("distill {folder} --size 0 --out {out}", "--size is 0: choose a whole number"),
    "channels": ("distill {folder} --channels 2 --out {out}", "--channels is 2: pass 1 for gray"),
    "nothing held out": (
        "evaluate {result} --data {folder} --split held-out",
        "No images of .* were held out: leave out --split",
    ),
    "batch": ("distill {folder} --batch-size 21 --out {out}", r"--batch-size is 21: .* 1\.\.20"),
    "devices": ("distill {folder} --devices 999", "JAX sees 1 of them: pass at most"),
    "a figure's own method": (
        "reproduce figure2 --method frepo --out {out}",
        "--method is rcig_paper of figure2: leave it out",
    ),
    "devices of a row": ("reproduce table2 --devices 999 --out {out}", "JAX sees 1 of them"),
    "depth": ("distill {folder} --batch-size 5 --depth 9 --out {out}", "smaller depth"),
    "method": ("distill --method best", "--method is 'best': choose one of rcig, rcig_paper"),
    "no result": ("evaluate {folder}/none", "does not exist"),
    "damaged result": ("evaluate {folder}/train.npz", "damaged or no distilled set"),
    "nothing to export": ("export {folder}/none", "does not exist"),
    "export over data": ("export {result} {folder}", "no export: choose another"),
    "other data": ("evaluate {result} --data fashion_mnist_small", "the data set that was dist"),
    "no split": ("evaluate {result} --data {folder} --split tset", "no split 'tset'"),
    "damaged test split": ("distill {damaged}", "cannot be read as an .npz"),
    "other classes": ("distill {other} --out {out}", "'ant', not among .*'dark', 'bright'"),
    "nothing to judge": ("judge {folder}/none.safetensors", "does not exist"),
    "no set to judge": ("judge {folder}/none --data {folder}", "does not exist"),
    "data to judge on": ("judge {folder}", "--data is missing"),
    "unknown preprocessing": (
        "judge {folder}/train.npz --data {folder} --preprocess pca",
        "--preprocess is 'pca': did you mean 'zca'",
    ),
    "preprocessing untold": (
        "judge {folder}/train.npz --data {folder} --layout frepo",
        "--preprocess is missing",
    ),
    "flip of our own": ("judge {result} --data {folder} --no-flip", "--flip is for sets of other"),
    "layout of our own": ("judge {result} --layout mtt", "--layout is for sets of other projects"),
    "pixels of our own": ("judge {result} --pixels", "--normalized is for sets of other projects"),
    "preprocessing of our own": (
        "judge {result} --preprocess zca",
        "--preprocess is for sets of other projects: leave it out",
    ),
    "no rate": ("judge {result} --data {folder} --learning-rate 0", "--learning-rate is 0.0"),
    "other classes judged": ("judge {result} --data {other}", "'ant'"),
    "no bits": ("judge {result} --data {folder} --bits-per-class 0", "bits-per-class"),
    "other classes evaluated": ("evaluate {result} --data {other}/test.npz", "'ant'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_exit_code_2(case, folder, out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    arguments, says = ERRORS[case]
    names = {"folder": folder, "out": tmp_path / "o", "result": out / "distilled.safetensors"}
    names["damaged"] = shutil.copytree(folder, tmp_path / "damaged")
    (names["damaged"] / "test.npz").write_bytes(b"damaged")
    names["other"] = shutil.copytree(folder, tmp_path / "other")
    with np.load(folder / "test.npz") as arrays:
        others: Any = dict(arrays) | {"class_names": ["ant", "bright"]}
        np.savez(names["other"] / "test.npz", **others)
    assert run(*arguments.format(**names).split()) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert not (tmp_path / "o").exists()  # nothing left behind


@pytest.fixture
def reproduced(monkeypatch):
    """What the command asks for, in place of doing it."""
    asked = []

    def report(target, workshop, rows, folder):
        name = next(name for name, known in TARGETS.items() if known is target)
        asked.append((name, workshop, [row.name for row in rows], folder))
        workshop.remarks["It diverged."] = None
        folder.mkdir(parents=True, exist_ok=True)
        return Report(name, "Title", ["a", "b"], [["1", "2"]], {}, ["a note"])

    monkeypatch.setattr(_command, "run", report)
    return asked


def test_tables_of_other_rows_stay(reproduced, tmp_path, capsys):
    for rows in (["--rows", "mnist/1"], ["--rows", "mnist/1,cifar10/1"], []):
        assert run("reproduce", "table2", *rows, "--scale", "small", "--out", tmp_path) == 0
    there = {str(p.relative_to(tmp_path / "small-default")) for p in tmp_path.rglob("*.md")}
    assert there == {"table2.md", "mnist-1/table2.md", "mnist-1+cifar10-1/table2.md"}
    assert [len(rows) for _, _, rows, _ in reproduced] == [1, 2, len(TABLE_2)]
    shown = capsys.readouterr().out
    assert (
        "table2, 2 rows at scale small, method default: 2 sets, 3 networks an evaluation" in shown
    )
    assert "It diverged." in (tmp_path / "small-default/mnist-1/table2.txt").read_text()
    assert run("reproduce", "table1", "--scale", "small", "--out", tmp_path) == 0
    assert reproduced[-1][-1] == tmp_path / "small-each"
    shorter = ("--evaluation-steps", "20", "--networks", "1")
    assert run("reproduce", "table1", "--scale", "small", *shorter, "--out", tmp_path) == 0
    assert reproduced[-1][-1] == tmp_path / "small-networks1-evaluation_steps20-each"


def test_the_methods_of_the_command_line():
    assert methods.METHODS["frepo_platt"]() == methods.frepo(outer_loss=platt_loss)
    assert methods.METHODS["frepo"]() == methods.frepo()
    assert run("distill", "--method", "frepo_plat", "--out", "x") == 2


def test_a_dry_run_is_of_all_that_a_table_distils(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_command, "dry_run", lambda row, workshop, **how: {"asked": how})
    dry = ("--rows", "cifar10/1", "--scale", "small", "--out", tmp_path, "--dry-run")

    def counted(target):
        assert run("reproduce", target, *dry) == 0
        shown = capsys.readouterr().out
        assert ("networks" in shown) == (target not in ("figure1", "table7"))
        return [int(line.split()[-1]) for line in shown.splitlines() if line.startswith("  sets")]

    assert [counted(t) for t in ("figure1", "figure2", "figure5", "figure7", "table7")] == (
        [[16], [16], [5], [1], [1]]
    )
    assert run("reproduce", "figure7", *dry) == 0
    assert "3 an evaluation, for 1,000 steps" in capsys.readouterr().out
    assert run("reproduce", "table1", *dry) == 0
    shown = capsys.readouterr().out
    for method in METHODS_TAKEN_APART:
        assert f"cifar10/1, {method}, small:" in shown
    assert run("reproduce", "table3", *dry) == 0
    assert "'normalization': 'batch'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_set_that_is_nowhere_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    def load(name, *_, **__):
        if name in ("cub200", "imagewoof"):
            raise data.DataError(f"{name} is nowhere.")
        return SimpleNamespace(image_shape=(28, 28, 1), class_names=("a",))

    monkeypatch.setattr("rcig_eqx.reproduce._workshop.load", load)
    rows = ("--rows", "mnist/1,cub200/1,imagewoof/1,cub200/10")
    assert run("reproduce", "table2", *rows, "--out", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "2 data sets cannot be had. (1) cub200 is nowhere. (2) imagewoof is nowhere. Or" in shown
    assert "the rows of cub200, imagewoof out, with --rows." in shown
    assert not (tmp_path / "out").exists()


def test_rows_are_listed(capsys):
    assert run("reproduce", "rows") == 0
    assert len(capsys.readouterr().out.splitlines()) == 22
    assert run("reproduce", "rows", "--rows", "mnist/1,cifar10/10") == 0
    _, line = capsys.readouterr().out.splitlines()
    assert (
        line.split("   ")[-1] == "table1, table2, table3, table7, table8, figure1, figure2, gallery"
    )
    assert line.split()[:6] == ["cifar10/10", "10,000", "steps,", "paper", "69.1", "±"]


def test_a_row_stopped_in_an_evaluation_says_that_it_goes_on(monkeypatch, tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_command, "run", stop)
    assert run("reproduce", "table2", "--rows", "mnist/1", "--out", tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().out.splitlines()[-1]


def test_version_and_help(capsys):
    module = [sys.executable, "-m", "rcig_eqx", "--version"]
    assert subprocess.run(module, capture_output=True, check=True).stdout.startswith(b"rcig-eqx 0.")
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("rcig-eqx 0.")
    for command in ("distill", "evaluate", "export", "judge"):
        assert run(command, "--help") == 0
        assert "--networks" in capsys.readouterr().out


REGISTRIES: dict[str, Any] = {
    "distill --method": methods.METHODS,
    "distill --architecture": models.NETWORKS,
    "distill --initialization": initializers.INITIALIZERS,
    "distill --parameterization": parameterizations.PARAMETERIZATIONS,
    "distill --metric": evaluation.METRICS,
    "distill --log": rcig_run.LOGGERS,
    "distill": data.DATASETS,
    "evaluate {result} --data {folder} --metric": evaluation.METRICS,
    "evaluate {result} --data {folder} --architecture": models.NETWORKS,
    "evaluate {result} --data": data.DATASETS,
    "judge {result} --data": data.DATASETS,
    "reproduce table2 --method": methods.METHODS,
}


@pytest.mark.parametrize("command", REGISTRIES)
def test_an_unknown_name_is_answered_with_those_of_the_registry(
    command, folder, out, tmp_path, capsys
):
    wrong = command.format(result=out / "distilled.safetensors", folder=folder).split()
    place = ["--out", tmp_path / "o"] * (not command.startswith(("evaluate", "judge")))
    assert run(*wrong, "no-such-name", *place) == 2
    error = capsys.readouterr().err
    assert ", ".join(REGISTRIES[command]) in error
    if REGISTRIES[command] is not data.DATASETS:
        assert f"Error: {wrong[-1]} is 'no-such-name': " in error
    assert not (tmp_path / "o").exists()


def test_without_typer_the_extra_is_named():
    code = "import sys; sys.modules['typer'] = None; from rcig_eqx._cli import main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install 'rcig-eqx[cli]'")
    assert "Traceback" not in done.stderr
