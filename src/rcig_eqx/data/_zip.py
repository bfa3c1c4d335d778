"""Whether a zip is whole, before anything in it is believed."""

import zipfile
from pathlib import Path

_END, _END_SIZE = b"PK\x05\x06", 22
_LONGEST_COMMENT = 2**16


def verify_zip(path: Path) -> None:
    """Read every member of a zip to its checksum, and count the members.

    A reader that stops before a member's end never compares its checksum, and a damaged directory
    can hide a member from `zipfile`. Raises `zipfile.BadZipFile` for either, and whatever the
    decompressors raise.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        file.seek(max(0, path.stat().st_size - _END_SIZE - _LONGEST_COMMENT))
        tail = file.read()
        end = tail[tail.rfind(_END) :]
        count = int.from_bytes(end[10:12], "little")
        if count != len(archive.infolist()):
            raise zipfile.BadZipFile(f"{len(archive.infolist())} of {count} members are listed")
