"""Paths as a user writes them."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """`path` with a leading `~` replaced by the home folder.

    Raises `ValueError` if there is a `~` and no home folder to put in its place.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path} begins with ~, and no home folder is known: give a whole path."
        ) from error
