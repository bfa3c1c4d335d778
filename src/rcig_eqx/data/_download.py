"""Fetching official files: checked against their checksum before they get their name."""

import importlib.util
from pathlib import Path
from typing import IO, Any

from ._dataset import DataError
from ._sources import Source

_TIMEOUT = 60  # seconds without an answer
_MOST = 2**31  # bytes of a file whose size is not known


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
    fetch: Any = pooch.HTTPDownloader(progressbar=bar, timeout=_TIMEOUT)
    for file in source.downloads(split):
        url, (size, digest) = f"{base}/{file}", source.files[file]

        def bounded(url: str, place: str, pooch: Any, most: int = size or _MOST) -> None:
            Path(place).unlink()  # pooch has made it, for its owner alone
            with open(place, "xb") as opened:
                fetch(url, _Bounded(opened, most), pooch)

        try:
            # pooch's protocol names a downloader's parameters otherwise than its own classes.
            pooch.retrieve(url, digest, fname=file, path=folder, downloader=bounded)  # pyright: ignore[reportArgumentType]
        except Exception as error:  # network, server, disk and checksum: one way out for all
            raise DataError(
                f"{source.title} could not be downloaded: {url}: {error}. "
                f"{_by_hand(source, split, by_hand or folder)}"
            ) from error


class _Bounded:
    """A file to write at most so many bytes to."""

    def __init__(self, file: IO[bytes], most: int):
        self._file, self._most = file, most

    def write(self, content: bytes) -> int:
        if self._file.tell() + len(content) > self._most:
            raise ValueError(f"more than {self._most:,} bytes came")
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def _by_hand(source: Source, split: str, folder: Path) -> str:
    files = " and ".join(source.downloads(split))
    return f"By hand: get {files} from {source.url} or elsewhere, and place in the folder {folder}."
