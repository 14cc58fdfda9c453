"""One job per folder: a lock that the operating system releases when its process dies.

Contract: `target_lock` locks `job.lock` in the folder while its block runs, and removes the file afterwards; a second
lock is refused. A file left by a killed process does not lock the folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mixq.errors import MixqError, printable
from mixq.formats.atomic import storage_error

FILE_NAME = "job.lock"


def _try_lock(handle: int) -> bool:
    """Lock the file for this process, without waiting; return whether it was free."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def target_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a target folder while a block runs.

    Raises:
        MixqError: another process holds it.
        StorageError: the folder cannot be written.
    """
    path = folder / FILE_NAME
    handle = _open_locked(path)
    try:
        yield
    finally:
        if sys.platform == "win32":  # Windows cannot remove an open file; one that another job has opened since stays
            os.close(handle)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            path.unlink(missing_ok=True)
            os.close(handle)


def _open_locked(path: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            locked = _try_lock(handle)
        except OSError as error:  # a file system without locks
            os.close(handle)
            raise storage_error(path, error) from error
        if not locked:
            os.close(handle)
            raise MixqError(
                f"another quantize job is working on {printable(path.parent)}.",
                hint="Wait for it to end, or choose another folder.",
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # its owner removed the file between our open and our lock


def is_locked(folder: Path) -> bool:
    """Return whether a process is working on a folder, without changing the folder."""
    try:
        handle = os.open(folder / FILE_NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(folder / FILE_NAME, error) from error
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)  # and with it the lock
