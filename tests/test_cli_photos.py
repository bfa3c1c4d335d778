"""The command line on folders of photos: mixed sizes, EXIF, corrupt files, unequal classes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("typer")

from _shell import run
from rcig_eqx import data, load_result
from rcig_eqx._cli._photos import Reading, photos, sensible_side, sized
from test_cli import FEW, SMALL

COUNTS = {"bright": 25, "dark": 5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of JPEG files of many sizes, some turned by EXIF, in gray and color."""
    rng = np.random.default_rng(0)
    for level, (name, count) in enumerate(COUNTS.items()):
        place = tmp_path / "photos" / name
        place.mkdir(parents=True)
        for i in range(count):
            height, width = rng.integers(20, 40, 2).tolist()
            pixels = rng.integers(0, 90, (height, width, 3)) + 120 * (1 - level)
            exif = Image.Exif()
            exif[0x0112] = 6 if i % 3 else 1
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture = picture.convert("L") if i == 0 else picture
            picture.save(place / f"{i:02}.jpg", exif=exif)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "photos"


def test_photos_of_many_sizes_are_distilled_and_tested_on_held_out_ones(folder, capsys, tmp_path):
    assert run("distill", "photos/", "--steps", 2, *SMALL, *FEW, "--out", "out") == 0
    said = capsys.readouterr()
    out, err = " ".join(said.out.split()), " ".join(said.err.split())
    assert "brought to 16x16 (--size" in out
    assert "no test split: 20% of each class is held out to test on (--hold-out)" in out
    assert "on 6 held-out images" in out
    assert "balanced_accuracy" in out
    assert "Classes have 4 (dark) to 20 (bright) images: outer batches have as many" in err
    result = load_result("out/distilled.safetensors")
    assert result.coreset.images.shape[1:] == (16, 16, 3)
    assert result.recipe["hold_out"] | {"images": 0} == {"part": 0.2, "seed": 0, "images": 0}
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (report["split"], report["test_images"]) == ("held-out", 6)

    # The same images again, without --data and by another path to the folder.
    few = ["out/distilled.safetensors", "--networks", 2, "--steps", 3, "--json", "again.json"]
    for where in ([], ["--data", folder]):
        assert run("evaluate", *few, *where) == 0
        again = json.loads((tmp_path / "again.json").read_text())
        assert again["accuracies"] == report["accuracies"]
        assert again["split"] == "held-out"
    assert (
        run("judge", *few[:1], "--networks", 1, "--steps", 2, "--no-full", "--json", "j.json") == 0
    )
    tested = json.loads((tmp_path / "j.json").read_text())["protocol"]
    assert (tested["train"]["images"], tested["tested_on"]["images"]) == (24, 6)

    # Another folder is tested on as a whole; a folder that has changed is refused.
    shutil.copytree(folder, "other")
    (tmp_path / "other" / "dark" / "00.jpg").unlink()
    assert run("evaluate", *few, "--data", "other") == 0
    assert json.loads((tmp_path / "again.json").read_text())["test_images"] == 29
    (folder / "dark" / "00.jpg").unlink()
    capsys.readouterr()
    assert run("evaluate", *few) == 2
    assert "has changed since it was distilled" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:.* are passed over")
def test_corrupt_photos_are_named_and_passed_over_on_request(folder, capsys):
    for name in ("bright/03.jpg", "bright/07.jpg", "dark/01.jpg", "dark/02.jpg"):
        (folder / name).write_bytes((folder / name).read_bytes()[:300])
    options = ["--steps", 1, *SMALL, *FEW, "--out", "out", "--no-balanced"]
    assert run("distill", "photos", *options) == 2
    error = capsys.readouterr().err
    named = "4 of 30 images (bright/03.jpg, bright/07.jpg, dark/01.jpg and 1 more) cannot be read"
    assert named in error
    assert "pass --skip-corrupt" in error
    assert "ImageFolder" not in error
    assert run("distill", "photos", *options, "--skip-corrupt") == 0
    assert f"{named} and are passed over" in capsys.readouterr().err
    result = load_result("out/distilled.safetensors")
    assert result.recipe["read"] == {"skip_corrupt": True}
    assert "balanced" not in result.recipe
    assert run("evaluate", "out/distilled.safetensors", "--networks", 1, "--steps", 2) == 0
    assert "on 6 images of photos" in capsys.readouterr().out  # as it was read to be distilled


def test_size_and_channels_are_those_asked_for(folder):
    options = ["--size", 8, "--channels", 1, "--hold-out", 0.4]
    assert run("distill", "photos", *options, "--steps", 1, *SMALL, *FEW, "--out", "out") == 0
    result = load_result("out/distilled.safetensors")
    assert result.coreset.images.shape[1:] == (8, 8, 1)
    assert result.recipe["read"] == {"size": 8, "channels": 1}
    assert result.recipe["hold_out"]["part"] == 0.4


def test_a_folder_with_splits_is_tested_on_its_own(folder, capsys, tmp_path):
    shutil.copytree(folder, "both/train")
    shutil.copytree(folder, "both/test")
    assert run("distill", "both", "--steps", 1, *SMALL, *FEW, "--out", "out") == 0
    assert "on 30 test images" in capsys.readouterr().out
    assert "hold_out" not in load_result("out/distilled.safetensors").recipe


def test_records_are_distilled_by_their_folder(folder, capsys):
    records = data.write_records(data.ImageFolder(folder, size=8, channels=3), "r", progress=False)
    assert run("distill", "r", "--steps", 1, *SMALL, *FEW, "--out", "out") == 0
    assert "on 6 held-out images" in capsys.readouterr().out
    assert len(records) == 30
    assert run("evaluate", "out/distilled.safetensors", "--networks", 1, "--steps", 2) == 0
    assert "on 6 images of r" in capsys.readouterr().out


def test_photos_of_one_size_are_left_as_they_are(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.full((20, 30), 9 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    assert photos(tmp_path, Reading()).image_shape == (20, 30, 1)
    assert photos(tmp_path, Reading(like=(12, 12, 3))).image_shape == (12, 12, 3)
    assert not capsys.readouterr().out
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "b" / "2.png")
    assert photos(tmp_path, Reading()).image_shape == (20, 30, 3)  # a gray first one is no rule
    for file in tmp_path.glob("*/*.png"):
        Image.open(file).resize((300, 300)).save(file)
    assert photos(tmp_path, Reading()).image_shape == (32, 32, 3)  # too large to distill


def test_sensible_sides():
    assert [sensible_side(short) for short in (5, 8, 31, 32, 500)] == [5, 8, 16, 32, 32]


def test_sets_in_memory_are_brought_to_a_size():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    whole = data.Dataset(images, np.arange(4) % 2, ("a", "b"))
    made = sized(whole, Reading(size=4, channels=3))
    assert made.image_shape == (4, 4, 3)
    assert sized(whole, Reading(size=8)) is whole
    rows = data.Dataset(np.zeros((4, 5), np.float32), np.arange(4) % 2, ("a", "b"))
    assert sized(rows, Reading()) is rows
    with pytest.raises(data.DataError, match="leave out --size and --channels"):
        sized(rows, Reading(size=4))
