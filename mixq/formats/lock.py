"""One job per folder: a lock that the operating system releases when its process dies.

Contract: `TargetLock` locks `job.lock` in the folder while its block runs, and removes the file afterwards; a second
lock is refused. A file left by a killed process does not lock the folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
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


class TargetLock:
    """The lock of a target folder, as a context manager.

    Raises:
        MixqError: another process holds it.
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._handle = -1

    def __enter__(self) -> TargetLock:
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise storage_error(self.path, error) from error
            try:
                locked = _try_lock(handle)
            except OSError as error:  # the file system has no locks
                os.close(handle)
                raise storage_error(self.path, error) from error
            if not locked:
                os.close(handle)
                raise MixqError(
                    f"another quantize job is working on {printable(self.path.parent)}.",
                    hint="Wait for it to end, or choose another folder.",
                )
            if self._is_current(handle):
                self._handle = handle
                return self
            os.close(handle)  # its owner removed the file between our open and our lock

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __exit__(self, *error: object) -> None:
        # Windows does not remove open files; one that another job has opened meanwhile stays
        if sys.platform == "win32":
            os.close(self._handle)
            with contextlib.suppress(OSError):
                self.path.unlink()
        else:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)


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
