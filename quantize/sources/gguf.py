"""A GGUF file, of one or several parts, as a source.

Contract: models of llama.cpp's architecture "llama" (Mixtral, Mistral, Llama), with experts merged, or, in files
from before April 2024, which llama.cpp no longer opens, one tensor per expert. F32, F16 and BF16 are returned
unchanged; the package gguf dequantizes all other types to float32, one matrix at a time: of merged experts only the
rows of one. Q4_0 and Q8_0 can be kept: their blocks are w4 and w8 with groups of 32 and float16 scales, code for code.
The rows of q and k are permuted to Hugging Face's order, also packed rows, since blocks run along the columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixq.errors import ModelFileError, printable
from mixq.formats import int_groups
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.quantize.gguf_format import (
    KEPT,
    PLAIN,
    check_type,
    dequantized,
    pairs_to_halves,
    rotated_heads,
    tensor_name,
    unpacked,
)
from mixq.quantize.sources.gguf_config import config_of
from mixq.quantize.sources.gguf_file import DAMAGED, GgufFile, TensorEntry
from mixq.quantize.sources.gguf_tokenizer import tokenizer_files
from mixq.quantize.sources.place import sampled
from mixq.quantize.sources.source import Source, already_quantized

PART = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})", re.DOTALL)
COMPUTED = re.compile(r"blk\.\d+\.attn_rot_embd(\.weight)?", re.ASCII)
"""Tensors of old files that newer programs compute instead."""
ROPE_FACTORS = "rope_freqs.weight"
"""Factors by which Llama 3.1 and others divide the frequencies of the rotary embedding."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """Where a parameter is stored."""

    # file, name: of the tensor
    file: GgufFile
    name: str
    type: str
    # start, nbytes: the parameter's own bytes, one expert's where experts are merged
    start: int
    nbytes: int
    shape: tuple[int, ...]  # the parameter's
    heads: int  # number of heads whose rows are permuted, 0 for none


class GgufSource(Source):
    """A GGUF file.

    Args:
        path: the file; of one in parts, any of them.

    Raises:
        ModelFileError: damaged, incomplete, of another architecture, or with an unsupported type or shape of a
            tensor; the message names the file.
        StorageError: it cannot be read.
        MixqError: the package gguf is missing.
    """

    def __init__(self, path: Path) -> None:
        self._files = [GgufFile(part) for part in parts_of(path)]
        self._owner: dict[str, GgufFile] = {}
        for file in self._files:
            for name in file.entries:
                if name in self._owner:
                    raise file.damaged(f"has the tensor {printable(name)!r}, and {self._owner[name].name} too")
                self._owner[name] = file
        first = self._files[0]
        if first.metadata.get("split.count", len(self._files)) != len(self._files):
            raise ModelFileError(
                f"{first.name} is one of {printable(first.metadata['split.count'])} parts.",
                hint="Put all parts into the same folder, with their original names: NAME-00001-of-0000N.gguf.",
            )
        _, embedding = self._entry("token_embd.weight")
        dtype = str(PLAIN.get(embedding.type, torch.bfloat16)).removeprefix("torch.")
        try:
            raw = config_of(first.metadata, embedding.shape[0], "output.weight" not in self._owner, dtype)
            self._side_files, tokenizer_notice = tokenizer_files(first.metadata, raw)
        except ModelFileError as error:
            raise ModelFileError(f"{first.name}: {error.message}", hint=error.hint or DAMAGED) from error
        nbytes = sum(entry.nbytes for file in self._files for entry in file.entries.values())
        split = PART.fullmatch(path.stem)
        super().__init__(split["stem"] if split else path.stem, raw, nbytes, path=path)
        self._parts = {parameter.name: self._find(parameter) for parameter in parameters(self.config)}
        self._check()
        types = sorted({part.type for part in self._parts.values()} - PLAIN.keys())
        if types:
            self.itemsize = 4
            self.notices = (already_quantized(f"GGUF's {' and '.join(types)}"),)
        if tokenizer_notice is not None:
            self.notices = (*self.notices, tokenizer_notice)

    def tensor(self, name: str) -> Tensor:
        part = self._parts[name]
        rows = self._rows(part)
        if part.type in PLAIN:
            return rows.view(PLAIN[part.type]).reshape(part.shape)
        return dequantized(rows, part.type, part.shape[-1]).reshape(part.shape)

    def kept(self, parameter: Parameter) -> Scheme | None:
        return KEPT.get(self._parts[parameter.name].type) if parameter.quantizable else None

    def packed(self, module: str) -> PackedLinear:
        part = self._parts[f"{module}.weight"]
        if part.type not in KEPT:
            raise KeyError(module)
        q, scale = unpacked(self._rows(part), part.type)
        if not bool(torch.isfinite(scale).all()):
            raise part.file.damaged(f"has scales in tensor {printable(part.name)!r} that are NaN or infinite")
        N, K = part.shape
        scheme = KEPT[part.type]
        return PackedLinear(scheme, (N, K), int_groups.pack(q, scale, scheme.bits))

    def fingerprint(self) -> str:
        return sampled(*(file.path for file in self._files))

    def side_files(self) -> dict[str, bytes]:
        return dict(self._side_files)

    def _rows(self, part: _Stored) -> Tensor:
        """Return a parameter's bytes, uint8 [N, bytes of a row], in Hugging Face's order; as a view if possible."""
        stored = part.file.bytes_of(part.start, part.nbytes)
        if part.type in PLAIN and part.start % PLAIN[part.type].itemsize:
            stored = stored.clone()  # torch requires numbers at multiples of their size
        rows = stored.reshape(part.shape[0] if len(part.shape) == 2 else 1, -1)
        return pairs_to_halves(rows, part.heads) if part.heads else rows

    def _find(self, parameter: Parameter) -> _Stored:
        """Return the place of a parameter, after checking its shape and type."""
        name, shape = tensor_name(parameter), parameter.shape
        if parameter.expert is not None:
            if name in self._owner:
                shape = (self.config.num_local_experts, *shape)
            elif (old := tensor_name(parameter, merged=False)) in self._owner:
                name = old
        file, entry = self._entry(name)
        if entry.shape != shape:
            raise ModelFileError(
                f"{file.name}: tensor {printable(name)!r} has shape {list(entry.shape)}; the metadata ask for "
                f"{list(shape)}.",
                hint=DAMAGED,
            )
        check_type(f"{file.name}: tensor {name!r}", entry.type)
        start, nbytes = entry.start, entry.nbytes
        if shape != parameter.shape:
            assert parameter.expert is not None
            nbytes //= shape[0]
            start += parameter.expert * nbytes
        heads = rotated_heads(parameter, self.config)
        return _Stored(file, name, entry.type, start, nbytes, parameter.shape, heads)

    def _entry(self, name: str) -> tuple[GgufFile, TensorEntry]:
        if name not in self._owner:
            raise ModelFileError(
                f"{self._files[0].name}: tensor {name!r} is missing.",
                hint="Finish the download, or choose the model's file: this may be an adapter, a vocabulary or an "
                "image encoder.",
            )
        file = self._owner[name]
        return file, file.entries[name]

    def _check(self) -> None:
        """Refuse tensors that do not belong to a parameter, and scaled rotary embeddings."""
        used = {part.name for part in self._parts.values()}
        for name, file in self._owner.items():
            if name in used or COMPUTED.fullmatch(name):
                continue
            if name != ROPE_FACTORS:
                raise ModelFileError(
                    f"{file.name}: tensor {printable(name)!r} is not part of the model that the metadata describe."
                )
            entry = file.entries[name]
            factors = file.bytes_of(entry.start, entry.nbytes).clone()
            if entry.type != "F32" or bool((factors.view(torch.float32) != 1).any()):
                raise ModelFileError(
                    f"{file.name} has {ROPE_FACTORS}: scaled rotary embeddings are not supported.",
                    hint="Use Mixtral, Mistral or Llama 2; Llama 3.1 and later have scaled rotary embeddings.",
                )


def parts_of(path: Path) -> list[Path]:
    """Return the files of a model, all parts in order; ModelFileError if one is missing."""
    split = PART.fullmatch(path.stem)
    if split is None:
        return [path]
    found = []
    for i in range(int(split["parts"])):
        part = path.with_name(f"{split['stem']}-{i + 1:05d}-of-{split['parts']}.gguf")
        if not part.exists():
            raise ModelFileError(f"part {printable(part.name)} is missing.", hint="Finish the download.")
        found.append(part)
    if not found:
        raise ModelFileError(
            f"{printable(path.name)} has an impossible number of parts in its name.",
            hint="Rename it: parts are named NAME-00001-of-0000N.gguf.",
        )
    return found
