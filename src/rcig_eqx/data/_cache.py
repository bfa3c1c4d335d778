"""Where files that belong to no run are kept."""

import os
from pathlib import Path

from ._paths import user_path


def cache_folder() -> Path:
    """Where downloads are kept: `~/.cache/rcig_eqx`, or under `$XDG_CACHE_HOME`.

    Raises `ValueError` if there is neither that variable nor a home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return user_path(given) / "rcig_eqx"
    try:
        return user_path("~/.cache") / "rcig_eqx"
    except ValueError as error:
        raise ValueError(
            "there is no home folder to keep a cache in: set $XDG_CACHE_HOME to a folder, or give "
            "directory= or folder=."
        ) from error
