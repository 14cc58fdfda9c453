"""Reads numpy's zip of arrays (.npz) from an untrusted file; writes one in memory.

Contract: the caller lists the arrays with their type and number of axes, and limits their total size. The size of the
zip's directory is checked before it is read, and the declared sizes before memory is allocated; then exactly the
declared bytes are read, and their checksums compared. Arrays are plain numbers in numpy's format 1.0, in C order, as
`np.savez` and `np.savez_compressed` write them: never objects, so never a pickle.

`np.load(allow_pickle=False)` refuses pickles too, but it reads a zip directory of any size, allocates what a header
declares before it reads, and evaluates the header as a Python literal; a hostile file can exhaust the memory.
"""

from __future__ import annotations

import errno
import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixq.errors import ModelFileError, StorageError, printable
from mixq.formats.json_file import regular_file_size

Kinds = Mapping[str, tuple[str, int]]
"""The type of each array in numpy's notation (`|u1`, `<f4`) and its number of axes."""

MOST_TEXT = 8 << 20
"""Most bytes of an array named `header`: parsed as JSON it takes many times as much memory."""

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \(((?:\d{1,10}, ?)*\d{0,10})\), \} *\n"
)
_LONGEST_HEADER = 512
_DIRECTORY = 4096  # bytes
_SHRINKS = 1040
"""Largest compression ratio of deflate: 1032 by its format (RFC 1951: 258 bytes from two bits), with some margin for
the ends."""


def is_zip(beginning: bytes) -> bool:
    """Return whether a file with this beginning is a zip."""
    return beginning[:2] == b"PK"


def read_arrays(path: Path, kinds: Kinds, most_bytes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file that has exactly these.

    Args:
        most_bytes: of the file, and of its arrays together.

    Raises:
        ModelFileError: it is not such a file, is too large, or damaged.
        StorageError: it cannot be read.
    """
    size = regular_file_size(path)
    if size > most_bytes:
        raise ModelFileError(f"{printable(path)} has {size:,} bytes; such a file has at most {most_bytes:,}.")
    try:
        with path.open("rb") as file:
            _check_ends(file, size, len(kinds))
            with zipfile.ZipFile(file) as archive:
                members = _members(archive, kinds, most_bytes)
                return {name: _array(archive, members[name], *kind) for name, kind in kinds.items()}
    except _Bad as error:
        raise ModelFileError(f"{printable(path)} is not a recording of mixq: {error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:  # what zipfile raises
        raise ModelFileError(f"{printable(path)} is damaged: {printable(error)}.") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # zipfile seeks to where a damaged directory points
            raise ModelFileError(f"{printable(path)} is damaged: {error.strerror}.") from error
        raise StorageError(f"{printable(path)} cannot be read: {error.strerror}.") from error


def packed(arrays: Mapping[str, NDArray[Any]], kinds: Kinds) -> bytes:
    """Return the bytes of a compressed .npz with these arrays, each converted to its type."""
    content = io.BytesIO()
    typed: dict[str, Any] = {
        name: np.ascontiguousarray(arrays[name], dtype=dtype) for name, (dtype, _) in kinds.items()
    }
    np.savez_compressed(content, **typed)
    return content.getvalue()


class _Bad(Exception):
    """The reason for a refusal, for the message."""


def _check_ends(file: io.BufferedReader, size: int, members: int) -> None:
    """Refuse a file without the end of a small zip, before `zipfile` reads a directory of any size into memory.

    The end record must have no comment (zip's APPNOTE 4.3.16) and no zip64 record before it.
    """
    if file.read(4) != b"PK\x03\x04":
        raise _Bad("it does not start like a zip file")
    file.seek(max(0, size - 42))
    tail = file.read(42)
    end = tail[-22:]
    if len(tail) < 42 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise _Bad("its end is missing, or is not that of a plain zip file")
    if tail[:4] == b"PK\x06\x07":
        raise _Bad("it is a zip64 file")
    count, nbytes = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if count != members or nbytes > _DIRECTORY:
        raise _Bad(f"it has {count} members in a directory of {nbytes:,} bytes; {members} arrays are expected")


def _members(archive: zipfile.ZipFile, kinds: Kinds, most_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by the arrays' names, after checking the sizes that they declare."""
    found = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
    if set(found) != set(kinds) or len(archive.infolist()) != len(kinds):
        names = ", ".join(printable(info.filename, 40) for info in archive.infolist())
        raise _Bad(f"its members are {names}, not {', '.join(kinds)}")
    for name, info in found.items():
        if info.flag_bits & 1:
            raise _Bad(f"{name} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Bad(f"{name} has a compression that numpy does not write")
        if info.file_size > info.compress_size * _SHRINKS + _LONGEST_HEADER:
            raise _Bad(f"{name} declares {info.file_size:,} bytes, more than its {info.compress_size:,} can hold")
    if "header" in found and found["header"].file_size > MOST_TEXT:
        raise _Bad(f"its header has {found['header'].file_size:,} bytes, more than {MOST_TEXT:,}")
    declared = sum(info.file_size for info in found.values())
    if declared > most_bytes:
        raise _Bad(f"its arrays have {declared:,} bytes, more than {most_bytes:,}")
    return found


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: str, axes: int) -> NDArray[Any]:
    """Read one .npy of exactly this kind (numpy.lib.format, version 1.0)."""
    name = info.filename
    with archive.open(info) as file:
        begin = file.read(len(_MAGIC) + 2)
        length = int.from_bytes(begin[len(_MAGIC) :], "little")
        if begin[: len(_MAGIC)] != _MAGIC or length > _LONGEST_HEADER:
            raise _Bad(f"{name} is not an array in numpy's format 1.0")
        header = file.read(length)
        match = _HEADER.fullmatch(header.decode("latin-1"))
        if match is None or match[1] != dtype:
            raise _Bad(f"{name} is not a plain array of type {dtype}")
        shape = tuple(int(number) for number in match[2].split(",") if number.strip())
        if len(shape) != axes:
            raise _Bad(f"{name} has {len(shape)} axes, not {axes}")
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        if info.file_size != len(begin) + length + nbytes:
            raise _Bad(f"{name} has {info.file_size:,} bytes, which is not what shape {shape} takes")
        content = file.read(nbytes)
        if len(content) != nbytes or file.read(1):
            raise _Bad(f"{name} is truncated")
    if dtype == "|b1" and content.strip(b"\0\1"):
        raise _Bad(f"{name} has values other than true and false")
    return np.frombuffer(content, dtype=dtype).reshape(shape)
