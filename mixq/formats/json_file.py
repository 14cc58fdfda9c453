"""Strict JSON, from untrusted files and requests.

Contract: `parse_json` refuses what Python's parser accepts but JSON does not have. `read_json_object` checks the size
before it reads, reads only regular files (no pipe, no device), and names the file in every `ModelFileError`.
Values are checked by `mixq.errors.Fields`.
"""

from __future__ import annotations

import errno
import json
import math
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixq.errors import MixqError, ModelFileError, StorageError, printable

MAX_BYTES = 8 << 20


def parse_json(text: bytes, max_depth: int | None = None) -> Any:
    """Return a JSON document, parsed more strictly than Python does.

    Args:
        text: of any size; the caller limits it.
        max_depth: most levels of nested objects and lists; None for Python's limit.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deep, a key twice in one object, NaN, Infinity, or a number that a
            float cannot hold. The message has the place, and quotes only keys.
    """
    try:
        parsed = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start} is not the start of a character") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, line {error.lineno}, column {error.colno}") from None
    except _NotStrict:
        raise
    except ValueError:  # Python's limit for whole numbers, 4300 digits
        raise ValueError("a number has too many digits") from None
    if max_depth is not None:
        _check_depth(parsed, max_depth)
    return parsed


class _NotStrict(ValueError):
    """Python parses it, but it is not JSON."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _NotStrict(f"the key {printable(repr(twice), 80)} occurs twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise _NotStrict(f"{name} is not a number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NotStrict("a number is too large")
    return value


def _check_depth(parsed: Any, max_depth: int) -> None:
    level, depth = [parsed], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > max_depth:
            raise ValueError(f"nested too deep, more than {max_depth} levels")
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]


def parse_json_object(
    text: bytes, what: str, max_depth: int | None = None, error: Callable[[str], MixqError] = ModelFileError
) -> dict[str, Any]:
    """Return a JSON object; see `parse_json`.

    Args:
        what: names the text in messages.
        error: creates the error to raise from a message.
    """
    try:
        parsed = parse_json(text, max_depth)
    except ValueError as problem:
        raise error(f"{printable(what)} is not JSON: {problem}.") from None
    if not isinstance(parsed, dict):
        raise error(f"{printable(what)} must be a JSON object.")
    return parsed


def regular_file_size(path: Path) -> int:
    """Return the size of a regular file; symlinks are followed, since Hugging Face's cache consists of them.

    Raises:
        ModelFileError: the file does not exist, or is a folder, pipe or device.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        dangling = path.is_symlink()
        raise ModelFileError(f"{printable(path)} {'is a broken symlink' if dangling else 'does not exist'}.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ModelFileError(f"{printable(path)} is a symlink loop.") from None
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{printable(path)} is not a regular file.")
    return status.st_size


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        ModelFileError: the file does not exist, is larger, or is not a regular file.
        StorageError: it cannot be read.
    """
    size = regular_file_size(path)
    if size > limit:
        raise ModelFileError(f"{printable(path)} has {size:,} bytes; such a file has at most {limit:,}.")
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {printable(error.strerror)}.") from error


def read_json_object(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes; errors as for `read_bounded`."""
    return parse_json_object(read_bounded(path, limit), path.name)
