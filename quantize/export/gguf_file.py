"""Exports a checkpoint or model folder to a GGUF file, for llama.cpp and programs based on it.

Contract: `GgufExport(source, target, type)` reads headers and decides everything; `run` writes the file under a
temporary name (`NAME.partial`), one matrix at a time, and renames it when it is complete; after a failure or
interruption nothing is left. Linear layers that the source has as w4 or w8 keep their codes (see `gguf_format`). GGUF
version 3, as specified in ggml's docs/gguf.md; the package `gguf` writes the header.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mixq.errors import ModelFileError, UsageError, printable
from mixq.formats.architecture import Parameter
from mixq.formats.atomic import partial_path, storage_error, sync_folder
from mixq.quantize.export.gguf_layout import FileTensor, plan, requantizes, scheme_in
from mixq.quantize.export.gguf_metadata import add_metadata
from mixq.quantize.gguf_format import KEPT, PLAIN, block_rows, gguf_package, halves_to_pairs, plain_rows, rotated_heads
from mixq.quantize.nonfinite import count_nonfinite
from mixq.quantize.scale_search import search
from mixq.quantize.sources.source import Source
from mixq.system.paths import check_free_space

ALIGNMENT = 32
"""Alignment of each tensor's data: GGUF's default."""


@dataclass(frozen=True, slots=True)
class GgufResult:
    """A finished export: the file, its size, bytes by type of tensor, and notices for the user."""

    path: Path
    nbytes: int
    types: dict[str, int]
    notices: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {**asdict(self), "path": str(self.path), "notices": list(self.notices)}


class GgufExport:
    """One export, checked against its source.

    Args:
        source: the checkpoint or folder.
        target: the file to write; it must not exist.
        type: auto keeps each linear layer's precision; bf16, f16, q8_0 and q4_0 apply to all.

    Raises:
        UsageError: an unknown type, or the target exists.
        MixqError: the package gguf is missing.
    """

    def __init__(self, source: Source, target: Path | str, type: str = "auto") -> None:
        gguf_package()
        self.source = source
        self.target = Path(target)
        if self.target.exists():
            what = "is a folder" if self.target.is_dir() else "exists"
            raise UsageError(f"the target {printable(self.target)} {what}.", hint="Name a file that does not exist.")
        self.tensors, self._plan_notes = plan(source, type)
        if type == "auto":
            sizes: Counter[str] = Counter()
            for tensor in self.tensors:
                sizes[tensor.type] += sum(part.numel for part in tensor.parameters if part.quantizable)
            self.main_type = sizes.most_common(1)[0][0]
        else:
            self.main_type = type.upper()

    def run(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> GgufResult:
        """Write the file; `on_progress` is called with the numbers of weights done and in total.

        Raises:
            StorageError: not enough disk (exact bytes, before any weight is written), or a failed write.
            ModelFileError: the file cannot hold a weight of the named tensor, or the tokenizer is damaged.
        """
        partial = partial_path(self.target)
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            notes = self._write_header(partial)
            with partial.open("ab") as file:
                self._check_disk(file.tell())
                self._write_tensors(file, on_progress)
                file.flush()
                os.fsync(file.fileno())
            nbytes = partial.stat().st_size
            partial.replace(self.target)
            sync_folder(self.target.parent)
        except OSError as error:
            raise storage_error(self.target, error) from error
        finally:
            partial.unlink(missing_ok=True)
        types: Counter[str] = Counter()
        for tensor in self.tensors:
            types[tensor.type] += tensor.nbytes
        return GgufResult(self.target, nbytes, dict(types), (*self._plan_notes, *notes))

    def _write_header(self, path: Path) -> tuple[str, ...]:
        """Write metadata and the list of tensors."""
        import gguf

        writer = gguf.GGUFWriter(path, "llama")
        file_type = gguf.LlamaFileType[f"MOSTLY_{self.main_type}"]
        notes = add_metadata(writer, self.source, int(file_type))
        for tensor in self.tensors:
            type = gguf.GGMLQuantizationType[tensor.type]
            # float32 tells the writer that the shape counts weights, not bytes.
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=type)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        return notes

    def _check_disk(self, written: int) -> None:
        needed = _padding(written) + sum(tensor.nbytes + _padding(tensor.nbytes) for tensor in self.tensors)
        check_free_space(self.target, needed)

    def _write_tensors(self, file: BinaryIO, on_progress: Callable[[int, int], None]) -> None:
        total = sum(part.numel for tensor in self.tensors for part in tensor.parameters)
        done = 0
        on_progress(done, total)
        file.write(bytes(_padding(file.tell())))
        for tensor in self.tensors:
            begun = file.tell()
            for part in tensor.parameters:
                file.write(self._rows(part, tensor).numpy().data)
                done += part.numel
                on_progress(done, total)
            assert file.tell() - begun == tensor.nbytes
            file.write(bytes(_padding(tensor.nbytes)))

    def _rows(self, parameter: Parameter, tensor: FileTensor) -> Tensor:
        """Return a parameter's bytes in the file, uint8 [N, bytes of a row]."""
        try:
            rows = self._converted(parameter, tensor.type)
        except ModelFileError as error:
            raise ModelFileError(f"{parameter.name}: {error.message}", hint=error.hint) from error
        heads = rotated_heads(parameter, self.source.config)
        return halves_to_pairs(rows, heads) if heads else rows

    def _converted(self, parameter: Parameter, type: str) -> Tensor:
        if type in KEPT and not requantizes(scheme_in(self.source, parameter), type):
            return block_rows(self.source.packed(parameter.module), type)
        weight = self.source.tensor(parameter.name)
        dtype = PLAIN.get(type, torch.bfloat16)
        bad, first = count_nonfinite(weight, dtype)
        if bad:
            where = f"{bad:,} {'weight is' if bad == 1 else 'weights are'} NaN, infinite or beyond {type}"
            raise ModelFileError(f"{where}, the first at {list(first)}.", hint="Export with --type bf16.")
        if type in PLAIN:
            return plain_rows(weight, dtype)
        return block_rows(search(weight, KEPT[type], scale_dtype=torch.float16).packed, type)


def _padding(size: int) -> int:
    return -size % ALIGNMENT
