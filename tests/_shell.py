"""The command line as its tests call it, and a small data set for it."""

from pathlib import Path

import numpy as np
import pytest


def run(*arguments: object) -> int | str | None:
    """The status of a command."""
    from rcig_eqx import _cli  # here, as its tests are skipped without typer

    with pytest.raises(SystemExit) as info:
        _cli.main(list(map(str, arguments)))
    return info.value.code


def shades(root: Path) -> Path:
    """A data set of two classes, dark and bright, with both splits, in a folder of .npz files."""
    folder = root / "shades"
    folder.mkdir()
    labels = np.arange(20) % 2
    for seed, split in enumerate(("train", "test")):
        noise = np.random.default_rng(seed).integers(0, 100, (20, 8, 8, 1))
        images = (noise + 100 * labels[:, None, None, None]).astype(np.uint8)
        np.savez(folder / split, images=images, labels=labels, class_names=["dark", "bright"])
    return folder
