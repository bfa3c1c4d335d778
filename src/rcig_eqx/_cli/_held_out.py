"""Which images a command trains on and which it tests on: splits, and parts held out."""

from pathlib import Path
from typing import Any, NamedTuple

from ..data import hold_out
from ..data._load import DATASETS, place_of_split
from ..data._paths import user_path
from ..data._records import IMAGES
from ..io._load_export import Export
from ..io._published._load import Published
from ..io._result import DistillResult
from ..io._terminal import echo
from ._images import Images, load_split, load_test, shown_name
from ._photos import Reading, mark_of

HELD = "held-out"  # a split by name, where a part of the training images is one
_USUAL, _SEED = 0.2, 0  # of a set without a test split; the seed is the same for every run


class Split(NamedTuple):
    """The images of a command.

    - `data`, `name`: the set, and the split that `test` is: "test", "train", or "held-out".
    - `test`: `None` where a set has no test images.
    - `train`: all that may be trained on, where it is known.
    - `recipe`: how the images are read and held out, as a result records it.
    """

    data: str
    name: str
    test: Images | None
    train: Images | None = None
    recipe: dict[str, Any] = {}  # noqa: RUF012


def to_distill(
    data: str, reading: Reading, part: float | None, *, test: bool
) -> tuple[Images, Split]:
    """The training images of a set, and what to test on: its test split or a part held out.

    `part` is what is asked for, 0 for none; where it is `None`, a part is held out if there is no
    test split. With `test` false, nothing is tested on, and a part is held out if asked for.
    """
    train = load_split(data, "train", reading)
    recipe: dict[str, Any] = {"read": reading.recorded} if reading.recorded else {}
    tested = load_test(data, reading.to_go_with(train)) if test and not part else None
    if part is None and test and tested is None:
        part = _USUAL
        if not reading.quiet:
            echo(
                f"{data} has no test split: {part:.0%} of each class is held out to test on "
                "(--hold-out)."
            )
    if not part:
        return train, Split(data, "test", tested, train, recipe)
    mark = mark_of(_place(data), train)
    recipe["hold_out"] = {"part": part, "seed": _SEED, "images": mark}
    kept, held = hold_out(train, part, seed=_SEED)
    return kept, Split(data, HELD, held if test else None, kept, recipe)


def to_test(
    found: DistillResult | Export | Published, data: str | None, split: str | None, reading: Reading
) -> Split:
    """The images to test a distilled set on: those held out when it was distilled, where `data` is
    what was distilled; else a test split, or all of a set of one split."""
    recipe = getattr(found, "recipe", {})
    distilled = str(recipe.get("dataset"))
    if data is None and distilled not in DATASETS and not user_path(distilled).exists():
        raise ValueError(
            f"The set was distilled from {distilled}, which is not here: pass its path as "
            "--data of rcig-eqx evaluate or judge."
        )
    data = data or distilled
    held = recipe.get("hold_out") if split in (None, HELD) else None
    if held and (data not in DATASETS or data == distilled):
        train = load_split(data, "train", reading)
        if mark_of(_place(data), train) == held["images"]:
            rest, test = hold_out(train, held["part"], seed=held["seed"])
            return Split(data, HELD, test, rest)
        if Path(shown_name(data)) == Path(distilled):
            raise ValueError(
                f"{data} has changed since it was distilled, so its held-out images are not known: "
                "pass other images as --data, or --split train to test on all."
            )
    if split == HELD:
        raise ValueError(f"No images of {data} were held out: leave out --split.")
    test = load_split(data, split, reading) if split else load_test(data, reading)
    if test is None and data != distilled:
        return Split(data, "train", load_split(data, "train", reading))
    return Split(data, split or "test", test)


def reading_of(found: Any, directory: Path | None, *, skip_corrupt: bool, quiet: bool) -> Reading:
    """How images are read to go with a distilled set: as when it was distilled."""
    recorded = getattr(found, "recipe", {}).get("read", {})
    skip_corrupt = skip_corrupt or recorded.get("skip_corrupt", False)
    size, channels = recorded.get("size"), recorded.get("channels")
    like = found.coreset.images.shape[1:]
    photos = like if len(like) == 3 else None
    return Reading(directory, size, channels, skip_corrupt, photos, quiet)


def _place(data: str) -> Path | None:
    """The file or folder of a training split, `None` of records and a set with a name."""
    path = user_path(data)
    if data in DATASETS or not path.is_dir() or (path / IMAGES).is_file():
        return None
    return place_of_split(path, "train")
