"""Test images, networks and reports of the commands."""

import json
import tempfile
from pathlib import Path

import jax.random as jr

from ..data import DataError, Records, load, open_records
from ..data._load import DATASETS, TOO_LARGE, place_of_split
from ..data._paths import user_path
from ..data._records import IMAGES
from ..evaluation._report import Evaluation
from ..io._export import CARD
from ..io._files import write_atomically
from ..io._load_export import Export, load_export
from ..io._result import RESULT, DistillResult, load_result
from ..io._terminal import echo
from ..models import MakeModel
from ..models._check import describe_model
from ._photos import Images, Reading, photos, sized


def read_set(path: Path) -> DistillResult | Export:
    """The distilled set in a file or folder: a result, or an export."""
    return load_export(path) if (user_path(path) / CARD).exists() else load_result(path)


def is_ours(path: Path) -> bool:
    """Whether a file or folder is a result or an export, by its name or what is in it."""
    place = user_path(path)
    if place.is_dir():
        return (place / CARD).exists() or (place / RESULT).exists()
    return place.suffix == ".safetensors"


def say_stored(result: DistillResult | Export) -> str:
    """What the set takes, if its recipe says so."""
    bits = result.recipe.get("bits_per_class")
    return f"{bits:,} bits per class" if bits else "the set"


def say_networks(make_model: MakeModel, networks: int) -> str:
    """How many networks of which kind."""
    kind = describe_model(make_model)
    normalization = kind.get("normalization", "none")
    normalized = "without" if normalization == "none" else normalization
    fresh = f"{networks} fresh network{'s' * (networks > 1)}"
    return f"{fresh} ({kind['name']}, {normalized} normalization)"


def load_split(dataset: str, split: str, reading: Reading) -> Images:
    """A split in memory, or on disk where it is too large or written as records."""
    directory = reading.directory and user_path(reading.directory)
    if dataset == TOO_LARGE:
        return open_records(dataset, split, directory=directory)
    path = user_path(dataset)
    if dataset not in DATASETS and path.is_dir():
        if (path / IMAGES).is_file() and split == "train":
            return sized(Records(path), reading)
        place = place_of_split(path, split)
        if place.is_dir():
            return photos(place, reading)
    return sized(load(dataset, split, directory=directory), reading)


def load_test(dataset: str, reading: Reading) -> Images | None:
    """The test images, or `None` for a file or folder that has none."""
    try:
        return load_split(dataset, "test", reading)
    except DataError:
        raise
    except ValueError:
        if not user_path(dataset).exists():
            raise
        return None


def shown_name(dataset: str) -> str:
    """What a result calls a data set: no path outside the present folder, which is nobody's."""
    path = user_path(dataset)
    if not path.is_absolute() and ".." not in path.parts:
        return dataset
    return f"custom {path.name}" if path.name in DATASETS else path.name


def check_writable(folder: Path) -> None:
    """Raise `OSError` unless files can be written in the folder, or it can be made."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OSError(f"Cannot write to {folder} ({error.strerror}): choose another.") from error


def evaluation_key(seed: int):
    """Fresh networks share nothing with those of the run of the same seed."""
    return jr.fold_in(jr.key(seed), 2**31)  # small numbers would repeat keys of jr.split


def write_report(
    path: Path,
    result: DistillResult,
    report: Evaluation,
    data: str,
    split: str,
    test: Images,
    seed: int,
) -> Path:
    """Everything an evaluation measured, as JSON."""
    content = {
        "data": shown_name(data),
        "split": split,
        "test_images": len(test),
        "seed": seed,
        **report.to_json(),
        "recipe": result.recipe,
    }
    write_atomically(path, json.dumps(content, indent=2).encode())
    return path


def read_report(path: Path, result: DistillResult) -> Evaluation:
    """What `write_report` wrote about this result, or `ValueError`."""
    try:
        content = json.loads(path.read_bytes())
        report = Evaluation.from_json(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no evaluation: measure it anew with evaluate.") from error
    if content.get("recipe") != result.recipe:
        raise ValueError(f"{path} is of another result: name this one's with --evaluation.")
    return report


def echo_paths(paths: list[Path]) -> None:
    """Say what was written."""
    echo("Wrote " + "\n      ".join(map(str, paths)))
