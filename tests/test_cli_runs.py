"""Runs of the command line: their options on disk, their time, and several compared."""

import json
import os
import re
import signal
import tomllib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")

from _shell import run, shades
from rcig_eqx import distill, load_result
from rcig_eqx._cli import _compare, _config, _distill, _time
from rcig_eqx.reproduce import _command
from rcig_eqx.reproduce._report import Report

SMALL = ["--width", 2, "--depth", 1, "--batch-size", 6]
FEW = ["--networks", 1, "--evaluation-steps", 3]
FREPO = [*SMALL, *FEW, "--method", "frepo"]


@pytest.fixture(scope="module", name="shades")
def _(tmp_path_factory):
    return shades(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def out(shades, tmp_path_factory):
    """The folder of one whole run."""
    out = tmp_path_factory.mktemp("runs") / "shades"
    assert run("distill", shades, "--steps", 3, *FREPO, "--seed", 7, "--out", out) == 0
    return out


def options(folder) -> dict[str, Any]:
    return tomllib.loads((folder / "run.toml").read_text())


def test_a_run_leaves_its_options_and_repeats_by_them(out, shades, tmp_path):
    written = options(out)
    assert written["dataset"] == str(shades)
    assert written["images-per-class"] == 1
    assert (written["seed"], written["method"], written["evaluate"]) == (7, "frepo", True)
    assert not written.keys() & {"out", "resume", "overwrite", "config", "quiet"}
    assert run("distill", "--config", out / "run.toml", "--out", tmp_path / "again") == 0
    first, again = (load_result(folder) for folder in (out, tmp_path / "again"))
    np.testing.assert_array_equal(first.coreset.images, again.coreset.images)
    assert options(tmp_path / "again") == written
    # What the command names goes before the file.
    more = ["--steps", 2, "--method", "random", "--out", tmp_path / "other"]
    assert run("distill", "--config", out / "run.toml", *more) == 0
    changed = {"steps": 2, "method": "random"}
    assert options(tmp_path / "other") == written | changed


def test_a_run_goes_on_by_its_folder_alone(shades, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("distill", shades, "--steps", 2, *FREPO, "--out", out) == 0
    assert run("distill", "--resume", "--out", out, "--steps", 4, "--networks", 2) == 0
    assert load_result(out).recipe["steps_done"] == 4
    assert (options(out)["steps"], options(out)["networks"]) == (4, 2)
    assert len(json.loads((out / "evaluation.json").read_text())["accuracies"]) == 2
    assert run("distill", shades, "--steps", 4, *FREPO, "--out", tmp_path / "whole") == 0
    at_once = load_result(tmp_path / "whole").coreset.images
    np.testing.assert_array_equal(load_result(out).coreset.images, at_once)
    before = (out / "run.toml").read_bytes()
    for wrong, says in (
        (["--width", 3], "--width is 3, and is 2 in"),
        (["--seed", 1], "--seed is 1, and is 0 in"),
        (["--storage", "9 bits per class"], "--storage is 9 bits per class, and was left out in"),
        (["--parameterization", "compact"], "--parameterization is compact, and is plain in"),
        (["--learning-rate", 0.1], "--learning-rate is 0.1, and was left out in"),
    ):
        assert run("distill", "--resume", "--out", out, *wrong) == 2
        error = capsys.readouterr().err
        assert says in error
        assert "leave it out, or choose another --out" in error
    assert run("distill", "--resume", "--out", out, "-n", 1, "--width", 2) == 0  # the same
    assert (out / "run.toml").read_bytes() == before


def test_a_folder_without_a_run_cannot_go_on(tmp_path, capsys):
    assert run("distill", "--resume", "--out", tmp_path / "none") == 2
    assert "holds no run to resume: name its folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


WRONG = {
    "no TOML": ("steps", "cannot be read as TOML"),
    "a misspelled option": ("stepps = 3", "did you mean 'steps'"),
    "a number in words": ('steps = "many"', "steps in .* is 'many': write it as"),
    "a part of a step": ("steps = 2.5", "steps in .* is 2.5"),
    "a list": ("width = [2]", r"width in .* is \[2\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_of_options_is_told(case, tmp_path, capsys):
    content, says = WRONG[case]
    (tmp_path / "run.toml").write_text(content)
    assert run("distill", "--config", tmp_path / "run.toml", "--out", tmp_path / "o") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error
    assert not (tmp_path / "o").exists()


def test_a_file_of_options_takes_whole_numbers_paths_and_lists(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('minutes = 5\ndirectory = "d"\nmetric = ["balanced_accuracy"]\nflip = false\n')
    found = _config.read_settings(file, _distill.DistillOptions)
    assert found["minutes"] == 5.0
    assert found["directory"].name == "d"
    assert found["metric"] == ["balanced_accuracy"]
    assert found["flip"] is False


def test_a_file_of_options_and_a_run_to_resume_are_one_too_many(out, capsys):
    assert run("distill", "--resume", "--config", out / "run.toml", "--out", out) == 2
    assert "leave one out" in capsys.readouterr().err


def test_options_of_a_run_that_cannot_begin_are_not_written(out, capsys):
    before = (out / "run.toml").read_bytes()
    assert run("distill", "--resume", "--out", out, "fashion_mnist_small") == 2
    assert "holds a run that differs" in capsys.readouterr().err
    assert (out / "run.toml").read_bytes() == before


def test_a_run_ends_by_its_minutes_and_can_be_made_longer(shades, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("distill", shades, "--minutes", 1e-9, *FREPO, "--out", out) == 0
    text = capsys.readouterr().out
    assert "to 1 per class for 1e-09 min. Ctrl-C" in text
    assert "Reached step 1 in 0.0 min." in text
    result = load_result(out)
    assert not result.interrupted
    assert result.recipe["steps"] == 1
    assert result.recipe["minutes"] == 1e-9
    assert (out / "evaluation.json").exists()
    # The minutes are over; only the networks are more.
    assert run("distill", "--resume", "--out", out, "--networks", 2) == 0
    assert load_result(out).recipe["steps_done"] == 1
    # Steps take the place of the minutes.
    assert run("distill", "--resume", "--out", out, "--steps", 3) == 0
    assert load_result(out).recipe["steps_done"] == 3
    assert "minutes" not in options(out)
    assert run("distill", shades, "--minutes", 0, *FREPO, "--out", tmp_path / "none") == 2
    assert "--minutes is 0.0: it must be positive" in capsys.readouterr().err
    assert run("distill", shades, "--steps", 0, *FREPO, "--out", tmp_path / "none") == 2
    assert "--steps is 0" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_cpu_has_a_width_that_fits(recwarn):
    said: list[str] = []

    def width(asked: int | None, architecture: str, *shape: int) -> int | None:
        return _time.width_for(SimpleNamespace(width=asked, say=said.append), architecture, shape)

    assert [width(None, "convnet", side, side, 3) for side in (8, 32, 64, 128, 999)] == (
        [32, 32, 16, 8, 8]
    )
    assert "Width 32, as this is a CPU: the paper's 128 takes about 12 times" in said[0]
    assert not recwarn.list
    assert width(16, "convnet", 32, 32, 1) == 16
    assert width(None, "mlp", 12) is None
    assert width(None, "resnet18", 32, 32, 3) is None
    assert len(said) == 5
    with pytest.warns(RuntimeWarning, match="Width 128 on a CPU .* about 12 times .* --width 32"):
        assert width(128, "convnet", 32, 32, 1) == 128


def test_other_hardware_has_the_usual_width(monkeypatch):
    monkeypatch.setattr(_time.jax, "default_backend", lambda: "gpu")
    asked = SimpleNamespace(width=None, say=pytest.fail)
    assert _time.width_for(asked, "convnet", (32, 32, 3)) is None


def test_the_folder_of_a_run_stands_for_its_result(out, shades, tmp_path, capsys):
    assert load_result(out).recipe == load_result(out / "distilled.safetensors").recipe
    few = ["--data", shades, "--networks", 1, "--steps", 3]
    assert run("evaluate", out, *few) == 0
    assert run("judge", out, *few, "--no-full") == 0
    assert run("export", out) == 0
    assert (out / "export" / "card.json").exists()
    assert run("judge", out / "export", *few, "--no-full") == 0
    with pytest.raises(FileNotFoundError, match=r"distilled\.safetensors does not exist"):
        load_result(tmp_path)


def test_versions_devices_and_completion(capsys):
    assert run("--version") == 0
    first, second = capsys.readouterr().out.splitlines()
    for part in ("rcig-eqx 0.", "jax 0.", "Python 3."):
        assert part in first
    assert second.startswith("Devices: 1 cpu")
    assert run("--help") == 0
    assert "--install-completion" in capsys.readouterr().out


def compared(shades, out, *more: object) -> int | str | None:
    return run("compare", shades, *SMALL, *FEW, "--out", out, *more)


def test_methods_are_compared_and_nothing_is_done_twice(shades, tmp_path, monkeypatch, capsys):
    out, taken = tmp_path / "out", []

    def distilled(*given, **asked):
        taken.append(asked["steps"])
        return distill(*given, **asked)

    monkeypatch.setattr(_distill, "distill", distilled)
    two = ["--methods", "frepo", "random", "--seeds", 2, "--steps", 2]
    assert compared(shades, out, *two, "--metric", "balanced_accuracy") == 0
    assert taken == [2] * 4
    names = {path.name for path in out.iterdir()}
    assert names == {
        "frepo",
        "random",
        *(f"compare.{kind}" for kind in ("txt", "md", "json", "png")),
    }
    found = json.loads((out / "compare.json").read_text())
    assert found["head"][:3] == ["method", "test accuracy, %", "balanced_accuracy"]
    assert [row[0] for row in found["rows"]] == ["frepo", "random", "random real"]
    assert [row[3:6] for row in found["rows"]] == [["2", "2", "2"], ["2", "2", "2"], ["2", "2", ""]]
    each = [
        json.loads((out / "frepo" / f"seed{s}" / "evaluation.json").read_text()) for s in (0, 1)
    ]
    together = found["values"]["frepo"]["evaluation"]
    assert together["accuracies"] == [e["accuracies"][0] for e in each]
    assert "| frepo |" in (out / "compare.md").read_text()
    assert "![compare](compare.png)" in (out / "compare.md").read_text()
    assert "frepo, seed 1: run 2 of 4" in capsys.readouterr().out
    # Nothing is missing; then a method; then steps of both.
    assert compared(shades, out, *two, "--metric", "balanced_accuracy") == 0
    assert taken == [2] * 4
    capsys.readouterr()
    assert compared(shades, out, "frepo,frepo_platt", "--steps", 2) == 0
    assert "frepo, seed 0: run 1 of 2, there already" in capsys.readouterr().out
    assert taken == [2] * 5
    assert compared(shades, out, "frepo", "--steps", 3) == 0
    assert taken == [2] * 5 + [3]
    found = json.loads((out / "compare.json").read_text())
    assert found["values"]["frepo"]["steps"] == [3]
    assert compared(shades, out, "frepo", "--steps", 3, "--seeds", 1, "--width", 3) == 2
    assert "--width is 3, and is 2 in" in capsys.readouterr().err


def test_a_comparison_that_is_stopped_goes_on(shades, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def interrupted(*given, **asked):
        at = len(list(out.rglob("distilled.safetensors")))

        def press(_: object) -> None:
            if at == 1:
                os.kill(os.getpid(), signal.SIGINT)

        return distill(*given, **asked | {"callbacks": [press]})

    monkeypatch.setattr(_distill, "distill", interrupted)
    both = ["frepo", "random", "--steps", 40]
    assert compared(shades, out, *both) == 130
    text = capsys.readouterr().out
    assert "Stopped after step 1 of 40" in text
    assert text.endswith("Stopped. All there is has been kept: the same command goes on.\n")
    assert not (out / "compare.json").exists()
    monkeypatch.undo()
    assert compared(shades, out, *both) == 0
    text = capsys.readouterr().out
    assert "frepo, seed 0: run 1 of 2, there already" in text
    assert "random, seed 0: run 2 of 2\n" in text
    assert json.loads((out / "compare.json").read_text())["values"]["random"]["steps"] == [40]


def test_a_comparison_stopped_in_an_evaluation_goes_on(shades, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_distill, "evaluate", stop)
    assert compared(shades, tmp_path, "frepo", "--steps", 2) == 130
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    assert compared(shades, tmp_path, "frepo", "--steps", 2) == 0


@pytest.mark.filterwarnings("ignore:Stopped. 10 steps")
def test_a_method_that_diverges_ends_no_comparison(shades, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_compare, "gave_up", lambda history: len(history["loss"]) == 1)

    def stopped(*given, **asked):
        first = not list(tmp_path.rglob("distilled.safetensors"))
        return distill(*given, **asked | {"callbacks": [lambda _: first]})

    monkeypatch.setattr(_distill, "distill", stopped)
    assert compared(shades, tmp_path, "frepo", "random", "--steps", 3) == 0
    text = capsys.readouterr().out
    assert "frepo, seed 0, diverged after 1 steps." in text
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert rows[0][:3] == ["frepo", "not evaluated", "0"]
    assert rows[1][2] == "1"


@pytest.mark.parametrize(
    ("methods", "says"), [([], "--methods is missing"), (["fre"], "did you mean 'frepo'")]
)
def test_methods_are_named(methods, says, shades, tmp_path, capsys):
    assert compared(shades, tmp_path / "o", *methods) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_reproduce_takes_the_set_that_comes_along(tmp_path, monkeypatch, capsys):
    asked = []

    def report(target, workshop, rows, folder):
        asked.append((workshop, [row.name for row in rows], folder))
        folder.mkdir(parents=True)
        images = workshop.data(rows[0], "train").images
        return Report("table2", f"{len(images)}", ["a"], [["1"]], {}, [])

    monkeypatch.setattr(_command, "run", report)
    small = ["--scale", "small", "--bundled", "--out", tmp_path]
    assert run("reproduce", "table2", *small) == 0
    workshop, rows, folder = asked[0]
    assert rows == ["fashion_mnist/1", "fashion_mnist/10", "fashion_mnist/50"]
    assert workshop.folder == tmp_path / "sets-bundled"
    assert folder.name == "small-default-bundled"
    assert workshop.training_images() == {"fashion_mnist_small": 5000}
    assert run("reproduce", "table2", "--rows", "mnist/1", *small) == 2
    assert "--bundled has no images for mnist/1" in capsys.readouterr().err
    assert run("reproduce", "table3", *small) == 2
    assert "--bundled has no images for table3" in capsys.readouterr().err
