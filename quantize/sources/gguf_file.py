"""One GGUF file: its metadata, where its tensors are, and their bytes.

Contract: the header is not trusted. Every length is checked against the file's size before anything is allocated, the
counts are bounded, the header may have 64 MiB, and every tensor's bytes are within the file; anything else is a
`ModelFileError` with the file's name. (The reader of the package gguf has no such limits: an array that declares 2**60
elements makes it run forever.)

Source: the GGUF specification, docs/gguf.md of ggml; versions 2 and 3, little-endian. Block sizes and types are those
of the package gguf.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixq.errors import ModelFileError, StorageError, printable
from mixq.quantize.gguf_format import gguf_package

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_COUNT = 1 << 16
"""Most tensors, and most metadata: Mixtral 8x7B has 995 tensors in the oldest format, and about 30 metadata."""
MAX_HEADER = 64 << 20
"""Bytes of metadata and of the list of tensors: a vocabulary of 256k tokens with its merges takes some 16 MB."""
MAX_DIMENSIONS = 4
DAMAGED = "The file is damaged or incomplete: download it again."

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's letter for each type of metadata; numpy's are the same."""
_STRING, _ARRAY = 8, 9

Value = Any
"""A metadata value: int, float, bool, str, a list of bytes (array of strings) or a numpy array (of numbers)."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor is stored."""

    type: str  # of gguf.GGMLQuantizationType, by name
    shape: tuple[int, ...]  # in numpy's order, the inputs last
    start: int  # of its bytes in the file
    nbytes: int  # of the whole tensor


class GgufFile:
    """A mapped GGUF file.

    Raises:
        ModelFileError: not a GGUF file, an unsupported version or byte order, damaged, or truncated.
        StorageError: it cannot be read.
        MixqError: the package gguf is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        gguf_package()
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                if self.size < 24:
                    raise self.damaged(f"has {self.size} bytes, fewer than any GGUF file")
                # Copy-on-write, since torch.frombuffer requires a writable buffer; no page is written or copied.
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY)
        except FileNotFoundError as error:
            raise ModelFileError(f"{printable(path)} does not exist.") from error
        except (OSError, ValueError) as error:
            raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
        cursor = _Cursor(self)
        tensors, pairs = cursor.begin()
        self.metadata: Mapping[str, Value] = cursor.metadata(pairs)
        self.entries: Mapping[str, TensorEntry] = cursor.entries(tensors, self._alignment())

    @property
    def name(self) -> str:
        """The file's name, escaped."""
        return printable(self.path.name)

    def damaged(self, what: str) -> ModelFileError:
        """Return the error for a file that `what`, such as "ends early"."""
        return ModelFileError(f"{self.name} {what}.", hint=DAMAGED)

    def bytes_of(self, start: int, nbytes: int) -> Tensor:
        """Return bytes of the file, uint8 [nbytes], as a view."""
        return torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes, offset=start)

    def peek(self, start: int, nbytes: int) -> bytes:
        """Return a copy of a few bytes, which must be within the file."""
        return self._map[start : start + nbytes]

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        if not isinstance(value, int) or not 1 <= value <= MAX_HEADER or value & (value - 1):
            raise self.damaged(f"has general.alignment {printable(repr(value))}, which is not a power of two")
        return value


class _Cursor:
    """Reads the header from its start, and never beyond its limit."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.at = 0

    def begin(self) -> tuple[int, int]:
        """Read magic, version and counts; return the number of tensors and of metadata."""
        if self.take(4) != MAGIC:
            raise ModelFileError(f"{self.file.name} is not a GGUF file.", hint=DAMAGED)
        version = self.number("I")
        if version not in VERSIONS:
            what = "is big-endian" if version & 0xFFFF == 0 else f"has version {version} of GGUF"
            raise ModelFileError(f"{self.file.name} {what}; mixq reads versions 2 and 3, little-endian.")
        tensors, pairs = self.number("Q"), self.number("Q")
        if tensors > MAX_COUNT or pairs > MAX_COUNT:
            raise self.file.damaged(f"declares {tensors:,} tensors and {pairs:,} metadata")
        return tensors, pairs

    def metadata(self, count: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self.text()
            if key in found:
                raise self.file.damaged(f"has {printable(key)!r} twice")
            found[key] = self.value(self.number("I"))
        return found

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.string().decode("utf-8", "replace")
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.file.damaged(f"has metadata of type {kind}, which GGUF does not have")
        return self.number(_SCALARS[kind])

    def array(self) -> list[bytes] | np.ndarray[Any, Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            self.need(8 * count)  # each has a length
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.file.damaged(f"has an array of type {kind}, which GGUF does not have")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def entries(self, count: int, alignment: int) -> dict[str, TensorEntry]:
        infos = [self.info() for _ in range(count)]
        data_start = -(-self.at // alignment) * alignment
        found: dict[str, TensorEntry] = {}
        for name, type, shape, nbytes, offset in infos:
            if name in found:
                raise self.file.damaged(f"has the tensor {printable(name)!r} twice")
            if offset % alignment or data_start + offset + nbytes > self.file.size:
                raise self.file.damaged(
                    f"has {self.file.size:,} bytes; the header places tensor {printable(name)!r} at "
                    f"{data_start + offset:,} to {data_start + offset + nbytes:,}"
                )
            found[name] = TensorEntry(type, shape, data_start + offset, nbytes)
        return found

    def info(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Return a tensor's name, type, shape, bytes and the offset of its data."""
        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.file.damaged(f"has the tensor {printable(name)!r} of {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        number, offset = self.number("I"), self.number("Q")
        gguf = gguf_package()
        if number not in set(gguf.GGMLQuantizationType):
            raise ModelFileError(
                f"{self.file.name}: tensor {printable(name)!r} has type {number}, unknown to the package gguf.",
                hint="Try a newer one: pip install --upgrade gguf. Some types from 2023 and 2024 were removed.",
            )
        type = gguf.GGMLQuantizationType(number)
        width, block_bytes = gguf.GGML_QUANT_SIZES[type]
        if min(shape) < 1 or shape[-1] % width:
            raise self.file.damaged(f"has the tensor {printable(name)!r} of shape {list(shape)}, type {type.name}")
        return name, type.name, shape, math.prod(shape) // width * block_bytes, offset

    def text(self) -> str:
        return self.string().decode("utf-8", "replace")

    def string(self) -> bytes:
        return self.take(self.number("Q"))

    def number(self, letter: str) -> Any:
        (value,) = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))
        return value

    def take(self, nbytes: int) -> bytes:
        self.need(nbytes)
        self.at += nbytes
        return self.file.peek(self.at - nbytes, nbytes)

    def need(self, nbytes: int) -> None:
        """Raise ModelFileError if fewer bytes are left."""
        if self.at + nbytes > MAX_HEADER:
            raise self.file.damaged(f"has a header of more than {MAX_HEADER >> 20} MiB")
        if self.at + nbytes > self.file.size:
            raise self.file.damaged(f"ends within its header, at {self.file.size:,} bytes")
