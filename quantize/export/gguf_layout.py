"""The tensors of a GGUF file before it exists: llama.cpp's names, order and types for a Mixtral, Mistral or Llama.

Contract: `plan` says of every tensor of the file which of the model's parameters it is made of (a layer's experts are
merged into one tensor for each matrix), of what type it gets and what has to be requantized for that. Names and shapes
as in llama.cpp's gguf-py/gguf/constants.py for the architecture "llama"; nothing is read but what the source declares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixq.config import ModelConfig, did_you_mean
from mixq.errors import UsageError, printable
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.mix import kind_of
from mixq.formats.scheme import Scheme
from mixq.quantize.export.blocks import BLOCK
from mixq.quantize.sources.huggingface import HuggingFaceSource

if TYPE_CHECKING:
    from mixq.quantize.sources.source import Source

TYPES = ("auto", "bf16", "f16", "q8_0", "q4_0")

ROW_BYTES = {"F32": lambda k: 4 * k, "BF16": lambda k: 2 * k, "F16": lambda k: 2 * k}
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}

FINENESS = ("Q4_0", "Q8_0", "F16", "BF16", "F32")
"""Types from coarse to fine."""

_NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "router": "ffn_gate_inp",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "w1": "ffn_gate_exps",
    "w2": "ffn_down_exps",
    "w3": "ffn_up_exps",
    "embedding": "token_embd",
    "lm_head": "output",
}


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's.
        type: of `FINENESS`.
        parameters: what it is made of; an expert each where experts are merged, else one.
    """

    name: str
    type: str
    parameters: tuple[Parameter, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as numpy has it, the inputs last."""
        own = self.parameters[0].shape
        return (len(self.parameters), *own) if self.parameters[0].expert is not None else own

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])


def row_bytes(type: str, K: int) -> int:
    """Return the bytes of a row of K weights."""
    return ROW_BYTES[type](K) if type in ROW_BYTES else K // BLOCK * BLOCK_BYTES[type]


def plan(source: Source, type: str) -> tuple[list[FileTensor], tuple[str, ...]]:
    """Return the tensors of the file in its order, and what is done otherwise than one might think, a sentence each.

    Args:
        source: what is exported.
        type: of `TYPES`; auto keeps the precision that each Linear has.

    Raises:
        UsageError: no such type.
    """
    if type not in TYPES:
        raise UsageError(f"unknown type {printable(type)!r}; there are {', '.join(TYPES)}." + did_you_mean(type, TYPES))
    sixteen = "F16" if type == "f16" or (type == "auto" and source.config.dtype == "float16") else "BF16"
    made: dict[str, list[Parameter]] = {}
    for parameter in parameters(source.config):
        made.setdefault(_name(parameter), []).append(parameter)
    requantized: dict[str, set[str]] = {}
    unaligned: set[str] = set()
    tensors: list[FileTensor] = []
    for name, parts in made.items():
        types = [_type(source, part, type, sixteen) for part in parts]
        finest = max(types, key=FINENESS.index)
        if finest in BLOCK_BYTES and parts[0].shape[-1] % BLOCK:
            finest = sixteen
            unaligned.add(kind_of(parts[0]))
        tensors.append(FileTensor(name, finest, tuple(parts)))
        if finest in BLOCK_BYTES:
            schemes = {scheme_in(source, part) for part in parts}
            for scheme in schemes - {None}:
                if requantizes(scheme, finest):
                    requantized.setdefault(f"{scheme} to {finest}", set()).add(kind_of(parts[0]))
    notes = [
        f"{_listed(kinds)}: requantized from {what}, which has other levels; the error adds to that of the source."
        for what, kinds in requantized.items()
    ]
    if unaligned:
        notes.append(f"{_listed(unaligned)}: rows do not divide into blocks of {BLOCK}; stored in {sixteen}.")
    return tensors, tuple(notes)


def scheme_in(source: Source, parameter: Parameter) -> Scheme | None:
    """Return the scheme in which the source holds a Linear: w4 or w8 that can be kept, or what its folder says."""
    kept = source.kept(parameter) if parameter.quantizable else None
    if kept is not None or not parameter.quantizable or not isinstance(source, HuggingFaceSource):
        return kept
    try:
        return source.packed(parameter.module).scheme  # views of the folder's bytes: nothing is read
    except KeyError:
        return None


def requantizes(scheme: Scheme | None, type: str) -> bool:
    """Whether a Linear in this scheme needs a search for this type: all but w4 and w8 with codes that fit."""
    return not (scheme is not None and (scheme.name == "w4" or (scheme.name == "w8" and type == "Q8_0")))


def row_order(parameter: Parameter, config: ModelConfig) -> NDArray[np.int64] | None:
    """Return the order of the rows of q and k in the file, None for all others.

    Hugging Face rotates the two halves of a head against each other, llama.cpp neighbouring rows: row i of the first
    half is followed by row i of the second (`LlamaModel.permute` of its converter).
    """
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(parameter.role)
    if heads is None:
        return None
    rows = np.arange(parameter.shape[0], dtype=np.int64)
    return rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _name(parameter: Parameter) -> str:
    if parameter.role == "norm":
        module = parameter.module.rsplit(".", 1)[-1]
        own = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "norm": "output_norm"}[module]
    else:
        own = _NAMES[kind_of(parameter)]
    return f"{own}.weight" if parameter.layer is None else f"blk.{parameter.layer}.{own}.weight"


def _type(source: Source, parameter: Parameter, type: str, sixteen: str) -> str:
    if parameter.role in ("norm", "router"):
        return "F32"
    if type in ("bf16", "f16") or not parameter.quantizable:
        return sixteen
    if type != "auto":
        return type.upper()
    scheme = scheme_in(source, parameter)
    return sixteen if scheme is None else "Q8_0" if scheme.bits == 8 else "Q4_0"


def _listed(kinds: set[str] | Sequence[str]) -> str:
    return ", ".join(sorted(kinds))
