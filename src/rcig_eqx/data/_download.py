"""Fetching official files: checked against their checksum before they get their name."""

import importlib.util
import os
from pathlib import Path

from ._dataset import DataError
from ._sources import Source

_TIMEOUT = 60  # seconds without an answer


def cache_folder() -> Path:
    """Where downloads are kept: `~/.cache/rcig_eqx`, or under `$XDG_CACHE_HOME`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcig_eqx"


def download(
    source: Source,
    split: str,
    folder: Path,
    *,
    mirror: str | None = None,
    by_hand: Path | None = None,
) -> None:
    """Bring the files `split` needs into `folder`.

    Each is written under another name, and renamed once complete and right by its checksum: what a
    failure leaves behind is never taken for good later. `mirror` replaces the official address.
    `DataError` says what to place by hand in `by_hand`, `folder` if `None`; `ImportError` asks for
    pooch.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            'downloading needs pooch: pip install "rcig-eqx[download]". '
            + _by_hand(source, split, by_hand or folder)
        ) from error
    base = (mirror or source.url).rstrip("/")
    bar = importlib.util.find_spec("tqdm") is not None
    for file in source.downloads(split):
        url = f"{base}/{file}"
        try:
            pooch.retrieve(
                url,
                known_hash=source.checksums[file],
                fname=file,
                path=folder,
                # pooch's protocol names this argument's parameters otherwise than its own class.
                downloader=pooch.HTTPDownloader(progressbar=bar, timeout=_TIMEOUT),  # pyright: ignore[reportArgumentType]
            )
        except Exception as error:  # network, server, disk and checksum: one way out for all
            raise DataError(
                f"{source.title} could not be downloaded: {url}: {error}. "
                f"{_by_hand(source, split, by_hand or folder)}"
            ) from error


def _by_hand(source: Source, split: str, folder: Path) -> str:
    files = " and ".join(source.downloads(split))
    return f"By hand: get {files} from {source.url} or elsewhere, and place in the folder {folder}."
