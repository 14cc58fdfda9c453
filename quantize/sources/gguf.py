"""A GGUF file, of one or several parts, as a source.

Contract: models of llama.cpp's architecture "llama" (Mixtral, Mistral, Llama), their experts merged as since April 2024
or one tensor each as before, which llama.cpp itself no longer opens. F32, F16 and BF16 are handed out as they are, any
other type dequantized to float32 by the package gguf, one matrix at a time: of merged experts only the rows of one.
Q4_0 and Q8_0 can be kept: their blocks are w4 and w8 with groups of 32 and float16 scales, code for code.

llama.cpp rotates neighbouring rows of q and k where Hugging Face rotates the halves of a head (`LlamaModel.permute` of
its converter); the rows go back to Hugging Face's order, packed ones too, since blocks run along the columns.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, printable
from mixq.formats import int_groups
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.quantize.sources.gguf_blocks import KEPT, PLAIN, check_type, dequantized, unpacked
from mixq.quantize.sources.gguf_config import config_of
from mixq.quantize.sources.gguf_file import DAMAGED, GgufFile, TensorEntry
from mixq.quantize.sources.gguf_tokenizer import tokenizer_files
from mixq.quantize.sources.huggingface import already_quantized
from mixq.quantize.sources.mistral import permuted
from mixq.quantize.sources.place import sampled
from mixq.quantize.sources.source import Source

PART = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})", re.DOTALL)
COMPUTED = re.compile(r"blk\.\d+\.attn_rot_embd(\.weight)?", re.ASCII)
"""Tensors of old files that are computed, not stored, today."""
ROPE_FACTORS = "rope_freqs.weight"
"""What Llama 3.1 and others divide the frequencies of the rotary embedding by."""

_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate": "ffn_gate_inp",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """Where a parameter lies.

    Attributes:
        file, name: of the tensor.
        start, nbytes: of the parameter's own bytes, one expert's where experts are merged.
        shape: the parameter's.
        heads: number of heads whose rows are permuted, 0 for none.
    """

    file: GgufFile
    name: str
    type: str
    start: int
    nbytes: int
    shape: tuple[int, ...]
    heads: int


class GgufSource(Source):
    """A GGUF file.

    Args:
        path: the file; of one in parts, any of them.

    Raises:
        ModelFileError: damaged, incomplete, of another architecture, or with a tensor of a type or shape that is not
            read, by the file's name.
        StorageError: it cannot be read.
        MixqError: the package gguf is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
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
                hint="Put all parts beside it, under the names that they were made with: NAME-00001-of-0000N.gguf.",
            )
        _, embedding = self._entry("token_embd.weight")
        dtype = str(PLAIN.get(embedding.type, torch.bfloat16)).removeprefix("torch.")
        try:
            self._raw = config_of(first.metadata, embedding.shape[0], "output.weight" not in self._owner, dtype)
            self._side_files, self._tokenizer_notice = tokenizer_files(first.metadata, self._raw)
        except ModelFileError as error:
            raise ModelFileError(f"{first.name}: {error.message}", hint=error.hint or DAMAGED) from error
        self._config = ModelConfig.from_dict(self._raw)
        self._parts = {parameter.name: self._find(parameter) for parameter in parameters(self._config)}
        self._check()

    @property
    def name(self) -> str:
        split = PART.fullmatch(self._path.stem)
        return split["stem"] if split else self._path.stem

    @property
    def path(self) -> Path:
        return self._path

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def raw_config(self) -> Mapping[str, Any]:
        return self._raw

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for file in self._files for entry in file.entries.values())

    @property
    def itemsize(self) -> int:
        plain = all(part.type in PLAIN for part in self._parts.values())
        return super().itemsize if plain else 4

    @property
    def notices(self) -> tuple[str, ...]:
        types = sorted({part.type for part in self._parts.values()} - PLAIN.keys())
        found = (already_quantized(f"GGUF's {' and '.join(types)}"),) if types else ()
        return found if self._tokenizer_notice is None else (*found, self._tokenizer_notice)

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
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(sampled(file.path))
        return digest.hexdigest()

    def side_files(self) -> dict[str, bytes]:
        return dict(self._side_files)

    def _rows(self, part: _Stored) -> Tensor:
        """Return a parameter's bytes, uint8 [N, bytes of a row], in Hugging Face's order; a view where it can be."""
        stored = part.file.bytes_of(part.start, part.nbytes)
        if part.type in PLAIN and part.start % PLAIN[part.type].itemsize:
            stored = stored.clone()  # torch wants numbers at multiples of their size
        rows = stored.reshape(part.shape[0] if len(part.shape) == 2 else 1, -1)
        return permuted(rows, part.heads) if part.heads else rows

    def _find(self, parameter: Parameter) -> _Stored:
        """Return where a parameter lies, its shape and type checked."""
        own = _NAMES[parameter.module.rsplit(".", 1)[-1]]
        prefix = own if parameter.layer is None else f"blk.{parameter.layer}.{own}"
        name, shape = f"{prefix}.weight", parameter.shape
        if parameter.expert is not None:
            name = f"{prefix}_exps.weight"
            if name in self._owner:
                shape = (self._config.num_local_experts, *shape)
            elif (old := f"{prefix}.{parameter.expert}.weight") in self._owner:
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
        heads = {"q": self._config.num_attention_heads, "k": self._config.num_key_value_heads}.get(parameter.role, 0)
        return _Stored(file, name, entry.type, start, nbytes, parameter.shape, heads)

    def _entry(self, name: str) -> tuple[GgufFile, TensorEntry]:
        if name not in self._owner:
            raise ModelFileError(
                f"{self._files[0].name}: tensor {name!r} is missing.",
                hint="Finish the download; files of adapters, vocabularies and image encoders hold no model.",
            )
        file = self._owner[name]
        return file, file.entries[name]

    def _check(self) -> None:
        """Refuse tensors that no parameter is made of, and scaled rotary embeddings."""
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
                    hint="Llama 3.1 and later have them.",
                )


def parts_of(path: Path) -> list[Path]:
    """Return the files of a model, all parts in their order; raises ModelFileError where one is not there."""
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
        raise ModelFileError(f"{printable(path.name)} is one of no parts.", hint="Its name is wrong: rename it.")
    return found
