"""What is printed, in such a way that printing ends nothing."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # tabs and line breaks apart


class Unfailing:
    """A text stream that takes everything.

    What its encoding lacks is written as `\\u732b`. Once it cannot be written to, as a pipe whose
    reader has ended, everything is dropped, and `failed` is the error.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.failed: Exception | None = None

    def write(self, text: str) -> int:
        """Write, and return how much was taken, which is all."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._watching():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._watching():
            self._stream.flush()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # the latter of a closed one
            self.failed = self.failed or error
            # What is left in the buffer would fail again when Python ends.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line, control characters of names in it escaped."""
    shown = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    print(shown, file=sys.stderr if err else sys.stdout, flush=True)
