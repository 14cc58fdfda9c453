"""Bounded reader of a safetensors header.

Contract: the header is untrusted. Its length is bounded before it is read; names, dtypes, shapes and
offsets are checked so that the tensors tile the file's data exactly: no duplicate, gap, overlap or trailing byte.
Format: https://github.com/huggingface/safetensors#format. Values are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from mixq.config import format_size
from mixq.errors import ModelFileError, StorageError, is_integer, printable
from mixq.formats.json_file import parse_json_object, regular_file_size

MAX_HEADER_BYTES = 8 << 20
"""Mixtral's largest published shard has a header of 0.1 MB; the safetensors library itself allows 100 MB."""

MAX_DIMENSIONS = 8
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
"""Allowed names of tensors: they cannot contain paths, control characters or terminal escapes."""

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""By safetensors' names, in safetensors' order: a file lists its tensors by descending dtype, then by name."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """The place of a tensor: bytes `start` to `end` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """The checked header of a safetensors file; `data_start` is the offset of the first tensor's bytes."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int
    file_size: int


def read_header(path: Path) -> ShardHeader:
    """Read and check the header of a safetensors file.

    Raises:
        ModelFileError: not a safetensors file, truncated, or a violation of the format.
    """
    shown = printable(path)
    size = regular_file_size(path)
    if size < 8:
        raise ModelFileError(
            f"{shown} has {size} bytes; a safetensors file starts with 8 bytes for the length of its header."
        )
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ModelFileError(
                    f"{shown}: its header has {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}. "
                    "The file is damaged, or not a safetensors file."
                )
            if 8 + length > size:
                raise ModelFileError(
                    f"{shown} is truncated: it ends inside its header, after {size:,} of {8 + length:,} bytes.",
                    hint="Download or quantize this file again.",
                )
            text = file.read(length)
    except OSError as error:
        raise StorageError(f"{shown} cannot be read: {printable(error)}.") from error
    return check_header(text, str(path), size)


def check_header(text: bytes, what: str, file_size: int) -> ShardHeader:
    """Check a header that was read from a safetensors file; `what` names the file in messages.

    Raises:
        ModelFileError: it violates the format, or the file does not have the length that the header implies.
    """
    shown, data_start = printable(what), 8 + len(text)
    raw = parse_json_object(text, what)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(f"{shown}: __metadata__ must contain only strings.")
    entries = {name: _entry(name, fields, shown, data_start) for name, fields in raw.items()}
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            problem = "overlaps another tensor" if entry.start < position else "leaves a gap before it"
            raise ModelFileError(
                f"{shown}: tensor {name!r} {problem}; the file is damaged, or was not written by a safetensors library."
            )
        position = entry.end
    if position > file_size:
        raise ModelFileError(
            f"{shown} is truncated: it is {format_size(file_size)} of {format_size(position)} "
            f"({position - file_size:,} bytes are missing).",
            hint="Download or quantize this file again.",
        )
    if position < file_size:
        raise ModelFileError(f"{shown}: {file_size - position:,} bytes follow the last tensor; the file is damaged.")
    return ShardHeader(entries, metadata, data_start, file_size)


def _entry(name: str, fields: object, shown: str, data_start: int) -> TensorEntry:
    if not NAME.fullmatch(name):
        raise ModelFileError(
            f"{shown}: {printable(name)!r} is not a tensor name; letters, digits, '.', '_' and '-' are allowed."
        )
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{shown}: tensor {name!r} must have exactly the keys dtype, shape and data_offsets.")
    dtype = DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise ModelFileError(f"{shown}: tensor {name!r} has the unknown dtype {printable(repr(fields['dtype']))}.")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(is_integer(n) for n in shape):
        raise ModelFileError(f"{shown}: tensor {name!r} has the invalid shape {printable(repr(shape))}.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_integer(n) for n in offsets):
        raise ModelFileError(f"{shown}: tensor {name!r} has the invalid data_offsets {printable(repr(offsets))}.")
    nbytes = dtype.itemsize * prod(shape)
    if offsets[1] - offsets[0] != nbytes:
        raise ModelFileError(
            f"{shown}: tensor {name!r} is {fields['dtype']} {shape} of {nbytes:,} bytes, "
            f"but its data_offsets span {offsets[1] - offsets[0]:,}."
        )
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
