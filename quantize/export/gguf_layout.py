"""The tensors of a GGUF file before it exists: names, order and types for a Mixtral, Mistral or Llama.

Contract: `plan` returns for every tensor of the file the model's parameters in it (a layer's experts are merged into
one tensor for each matrix), its type, and what must be requantized for it. Only the source's headers are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixq.errors import UsageError, did_you_mean, printable
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.mix import kind_of
from mixq.formats.scheme import Scheme
from mixq.quantize.gguf_format import BLOCK, KEPT, gguf_package, tensor_name
from mixq.quantize.sources.huggingface import HuggingFaceSource

if TYPE_CHECKING:
    from mixq.quantize.sources.source import Source

TYPES = ("auto", "bf16", "f16", "q8_0", "q4_0")

FINENESS = ("Q4_0", "Q8_0", "F16", "BF16", "F32")
"""Types from coarse to fine."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of the file."""

    name: str  # llama.cpp's
    type: str  # of `FINENESS`
    parameters: tuple[Parameter, ...]  # its content; one for each expert where experts are merged, else one

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in numpy's order, the inputs last."""
        own = self.parameters[0].shape
        return (len(self.parameters), *own) if self.parameters[0].expert is not None else own

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])


def row_bytes(type: str, K: int) -> int:
    """Return the bytes of a row of K weights."""
    gguf = gguf_package()
    width, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    return int(K // width * nbytes)


def plan(source: Source, type: str) -> tuple[list[FileTensor], tuple[str, ...]]:
    """Return the tensors in the order of the file, and notices for the user, one sentence each.

    Args:
        type: of `TYPES`; auto keeps each linear layer's precision.

    Raises:
        UsageError: an unknown type.
    """
    if type not in TYPES:
        raise UsageError(
            f"unknown type {printable(type)!r}; choose from {', '.join(TYPES)}." + did_you_mean(type, TYPES)
        )
    sixteen = "F16" if type == "f16" or (type == "auto" and source.config.dtype == "float16") else "BF16"
    made: dict[str, list[Parameter]] = {}
    for parameter in parameters(source.config):
        made.setdefault(tensor_name(parameter), []).append(parameter)
    requantized: dict[str, set[str]] = {}
    unaligned: set[str] = set()
    tensors: list[FileTensor] = []
    for name, parts in made.items():
        types = [_type(source, part, type, sixteen) for part in parts]
        finest = max(types, key=FINENESS.index)
        if finest in KEPT and parts[0].shape[-1] % BLOCK:
            finest = sixteen
            unaligned.add(kind_of(parts[0]))
        tensors.append(FileTensor(name, finest, tuple(parts)))
        if finest in KEPT:
            schemes = {scheme_in(source, part) for part in parts}
            for scheme in schemes - {None}:
                if requantizes(scheme, finest):
                    requantized.setdefault(f"{scheme} to {finest}", set()).add(kind_of(parts[0]))
    notes = [
        f"{', '.join(sorted(kinds))}: requantized from {what}, which has other code values; this adds to the error."
        for what, kinds in requantized.items()
    ]
    if unaligned:
        notes.append(f"{', '.join(sorted(unaligned))}: rows are not multiples of {BLOCK} weights; stored in {sixteen}.")
    return tensors, tuple(notes)


def scheme_in(source: Source, parameter: Parameter) -> Scheme | None:
    """Return a linear layer's scheme in the source: w4 or w8 if it can be kept, or the folder's."""
    if not parameter.quantizable:
        return None
    return source.scheme_of(parameter) if isinstance(source, HuggingFaceSource) else source.kept(parameter)


def requantizes(scheme: Scheme | None, type: str) -> bool:
    """Return whether this type needs a new scale search: for all schemes but w4 and w8 with fitting codes."""
    return not (scheme is not None and (scheme.name == "w4" or (scheme.name == "w8" and type == "Q8_0")))


def _type(source: Source, parameter: Parameter, type: str, sixteen: str) -> str:
    if parameter.role in ("norm", "router"):
        return "F32"
    if type in ("bf16", "f16") or not parameter.quantizable:
        return sixteen
    if type != "auto":
        return type.upper()
    scheme = scheme_in(source, parameter)
    return sixteen if scheme is None else "Q8_0" if scheme.bits == 8 else "Q4_0"
