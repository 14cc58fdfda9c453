"""Atomic writes: a file has its final name only when it is complete.

Contract: content is written to `NAME.partial` next to the target, synced and renamed over it, and the folder is synced;
after a crash at any time there is the old file or the new one, never a part of it. Devices and pipes (/dev/stdout) are
written directly. Failures are `StorageError`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mixq.errors import StorageError, printable

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Return the temporary name of `path`."""
    return path.with_name(path.name + PARTIAL)


def storage_error(path: Path, error: OSError, wanted: int | None = None) -> StorageError:
    """Return the error to raise for a failed write of `wanted` bytes to `path`."""
    shown = printable(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        size = f" ({wanted:,} bytes)" if wanted is not None else ""
        return StorageError(
            f"{shown}{size} does not fit on the disk: {printable(error.strerror)}.",
            hint="Free some space, then run the same command again.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{shown} cannot be written: {printable(error.strerror)}.", hint="Choose a folder that you can write to."
        )
    return StorageError(f"{shown} cannot be written: {printable(error.strerror or error)}.")


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it are durable; not available or needed on Windows."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically; a private one can be read only by its owner."""
    unfinished = partial_path(path)
    try:
        if _is_stream(path):
            with open(path, "wb") as file:
                file.write(content)
            return
        if private:
            unfinished.unlink(missing_ok=True)  # an existing file may be readable by others
        with open(unfinished, "wb", opener=partial(os.open, mode=0o600) if private else None) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except BaseException as error:  # also after Ctrl-C, no partial file remains
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(path, error, len(content)) from error
        raise


def _is_stream(path: Path) -> bool:
    """Return whether a path is a device, pipe or socket, which a rename over it would destroy."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def atomic_write_json(path: Path, content: Mapping[str, Any], *, private: bool = False) -> None:
    """Write a JSON object atomically, indented, keys in their order; see `atomic_write_bytes`.

    Raises:
        ValueError: a NaN or an infinite number, which JSON does not have; nothing is written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write_bytes(path, text.encode(), private=private)
