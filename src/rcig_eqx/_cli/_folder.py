"""The folder of a run: what is there already, and what stays if the run cannot begin."""

import contextlib
import shutil
import signal
from collections.abc import Iterator
from typing import Any

from typer import Exit

from ..io._terminal import echo


def check_free(asked: Any) -> None:
    """Raise `FileExistsError` for an earlier result that is neither to be replaced nor resumed."""
    if asked.overwrite or asked.resume:
        return
    if asked.file.exists():
        raise FileExistsError(
            f"{asked.file} is there already: pass --overwrite, another --out, or --resume to go on."
        )
    if asked.kept:
        raise FileExistsError(
            f"{asked.checkpoints} holds an interrupted run: pass --resume to go on with it, "
            "--overwrite to start anew, or another --out."
        )


@contextlib.contextmanager
def earlier_kept(asked: Any) -> Iterator[None]:
    """An earlier run's checkpoints are set aside within, and are there again if it cannot begin."""
    earlier = asked.checkpoints.with_name("checkpoints.earlier")
    if asked.overwrite and not asked.resume and asked.checkpoints.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        asked.checkpoints.rename(earlier)
    try:
        yield
    except (ValueError, OSError):
        if earlier.exists() and not asked.kept:
            shutil.rmtree(asked.checkpoints, ignore_errors=True)
            earlier.rename(asked.checkpoints)
        raise
    except KeyboardInterrupt:
        then = "nothing was there to keep."
        if asked.kept:
            then = "--resume goes on from the last checkpoint."
        echo(f"Stopped at once: {then}", err=True)
        raise Exit(128 + signal.SIGINT) from None
    shutil.rmtree(earlier, ignore_errors=True)
