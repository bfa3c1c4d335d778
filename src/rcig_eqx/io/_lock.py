"""Folders that one process at a time writes to."""

import contextlib
import errno
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_FILE = ".lock"
# What file systems say that have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
_held: ContextVar[contextlib.ExitStack] = ContextVar("held")


@contextlib.contextmanager
def releasing() -> Iterator[None]:
    """What is held within is free at the end, whichever it is. Also a decorator."""
    with contextlib.ExitStack() as held:
        token = _held.set(held)
        try:
            yield
        finally:
            _held.reset(token)


def hold(folder: Path) -> None:
    """Make a folder and keep it from every other writer, until the end of `releasing` around.

    The system forgets the lock of a process that is killed. Raises `BlockingIOError`, which names
    the host and the process, if another one holds it, and `OSError` if it cannot be made.
    """
    _held.get().enter_context(_locked(folder))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    descriptor = _open(path := folder / _FILE)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):  # once something is in it
            for place in made:
                place.rmdir()


def _open(path: Path) -> int:
    """The lock's file, opened and locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o666)
        except FileNotFoundError:
            continue  # who held it before has just removed the folder
        try:
            _lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # or the file
        except BlockingIOError:
            owner = os.read(descriptor, 300).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise BlockingIOError(
                f"{path.parent} is in use by {owner}: wait for its end, or choose another folder."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Raise `BlockingIOError` if another process has it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 2**20, os.SEEK_SET)  # beyond the owner's name, which stays readable
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            "The file system has no locks: let no other run write to the same folder.",
            RuntimeWarning,
            stacklevel=8,
        )
