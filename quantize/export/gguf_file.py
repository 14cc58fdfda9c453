"""A GGUF file of a checkpoint or model folder, for llama.cpp and what is built on it.

Contract: `GgufExport(source, target, type)` reads headers and decides everything; `run` writes the file beside its name
(`NAME.partial`) one matrix at a time and renames it when it is whole; on any failure or interruption nothing is left.
What the source has as w4 or w8 keeps its codes (see `blocks`). GGUF version 3, as specified in ggml's docs/gguf.md; the
header is written by the package `gguf`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from mixq.errors import MixqError, ModelFileError, UsageError, printable
from mixq.formats.architecture import Parameter
from mixq.formats.atomic import partial_path, storage_error, sync_folder
from mixq.formats.scheme import Scheme
from mixq.quantize.export.blocks import BLOCK, Bytes, plain_rows, q4_0_rows, q8_0_rows
from mixq.quantize.export.gguf_layout import FileTensor, plan, requantizes, row_order, scheme_in
from mixq.quantize.export.gguf_metadata import add_metadata
from mixq.quantize.nonfinite import count_nonfinite
from mixq.quantize.scale_search import search
from mixq.quantize.sources.source import Source
from mixq.system.paths import check_free_space

ALIGNMENT = 32
"""Of each tensor's data, GGUF's default."""

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SEARCHED = {"Q4_0": "w4", "Q8_0": "w8"}


@dataclass(frozen=True, slots=True)
class GgufResult:
    """What an export has made: the file, its size, bytes by type of tensor, and what was said on the way."""

    path: Path
    nbytes: int
    types: dict[str, int]
    notices: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {"path": str(self.path), "nbytes": self.nbytes, "types": self.types, "notices": list(self.notices)}


class GgufExport:
    """One export, checked against its source.

    Args:
        source: what is exported.
        target: the file to make; it must not exist.
        type: auto keeps each Linear's own precision; bf16, f16, q8_0 and q4_0 make all alike.

    Raises:
        UsageError: no such type, or a target that exists.
        MixqError: the package gguf is missing.
    """

    def __init__(self, source: Source, target: Path | str, type: str = "auto") -> None:
        try:
            import gguf  # noqa: F401
        except ModuleNotFoundError:
            raise MixqError("writing GGUF needs the package gguf.", hint="Install it: pip install gguf") from None
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
        """Write the file; `on_progress` is called with weights done and weights in all.

        Raises:
            StorageError: not enough disk (exact bytes, before any weight is written), or a write that failed.
            ModelFileError: a weight that the file cannot hold, by the tensor's name, or a damaged tokenizer.
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
            # float32 stands for "the shape counts weights, not bytes" here.
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
                file.write(self._rows(part, tensor).data)
                done += part.numel
                on_progress(done, total)
            assert file.tell() - begun == tensor.nbytes
            file.write(bytes(_padding(tensor.nbytes)))

    def _rows(self, parameter: Parameter, tensor: FileTensor) -> Bytes:
        """Return a parameter's bytes in the file, uint8 [N, bytes of a row]."""
        try:
            rows = self._converted(parameter, tensor.type)
        except ModelFileError as error:
            raise ModelFileError(f"{parameter.name}: {error.message}", hint=error.hint) from error
        order = row_order(parameter, self.source.config)
        return rows if order is None else rows[order]

    def _converted(self, parameter: Parameter, type: str) -> Bytes:
        to_blocks = {"Q4_0": q4_0_rows, "Q8_0": q8_0_rows}
        if type in to_blocks and not requantizes(scheme_in(self.source, parameter), type):
            return to_blocks[type](self.source.packed(parameter.module))
        weight = self.source.tensor(parameter.name)
        dtype = PLAIN.get(type, torch.bfloat16)
        bad, first = count_nonfinite(weight, dtype)
        if bad:
            where = f"{bad:,} {'weight is' if bad == 1 else 'weights are'} NaN, infinite or beyond {type}"
            raise ModelFileError(f"{where}, the first at {list(first)}.", hint="Export with --type bf16.")
        if type in PLAIN:
            return plain_rows(weight, dtype)
        return to_blocks[type](search(weight, Scheme(SEARCHED[type], BLOCK), scale_dtype=torch.float16).packed)


def _padding(size: int) -> int:
    return -size % ALIGNMENT
