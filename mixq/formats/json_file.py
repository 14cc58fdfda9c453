"""Reads a small JSON object from an untrusted file.

Contract: the size is bounded before anything is read, the file must be a regular one (no pipe, no device), a key may
stand there once, and every failure is a `ModelFileError` that names the file.
"""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Any

from mixq.errors import ModelFileError, StorageError, printable

MAX_BYTES = 8 << 20


def parse_json_object(text: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in `text`; `what` names it in messages.

    Raises:
        ModelFileError: not UTF-8, not JSON, nested too deep, a key twice, NaN or Infinity, or no object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise ValueError(f"the key {printable(key)!r} stands there twice")
                seen.add(key)
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ModelFileError(f"{printable(what)}: the JSON is nested too deep.") from None
    except ValueError as error:  # includes JSONDecodeError, UnicodeDecodeError and numbers of thousands of digits
        raise ModelFileError(f"{printable(what)}: not valid JSON ({printable(error)}).") from None
    if not isinstance(parsed, dict):
        raise ModelFileError(f"{printable(what)}: the JSON is not an object.")
    return parsed


def regular_file_size(path: Path) -> int:
    """Return the size of a regular file; links are followed, since Hugging Face's cache is made of them.

    Raises:
        ModelFileError: there is no such file, or it is a folder, pipe or device.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        dangling = path.is_symlink()
        raise ModelFileError(
            f"{printable(path)} {'is a link to a file that is not there' if dangling else 'does not exist'}."
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ModelFileError(f"{printable(path)} is a link that leads in a circle.") from None
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{printable(path)} is not a regular file.")
    return status.st_size


def read_json_object(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes."""
    size = regular_file_size(path)
    if size > limit:
        raise ModelFileError(f"{printable(path)} has {size:,} bytes; a file of its kind has at most {limit:,}.")
    try:
        with path.open("rb") as file:
            text = file.read(limit)
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
    return parse_json_object(text, path.name)
