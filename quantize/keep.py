"""`--keep`: which packed linear layers of a source are copied unchanged.

Contract: a kind of linear layer (w1, q, lm_head ...) is kept only if it has the same scheme in every layer and expert,
because config.json describes kinds. Only the source's headers are read.
"""

from __future__ import annotations

import torch

from mixq.errors import ModelFileError, UsageError
from mixq.formats.architecture import parameters
from mixq.formats.mix import kind_of
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.quantize.sources.source import Source


def kept_kinds(source: Source) -> tuple[dict[str, Scheme], tuple[str, ...]]:
    """Return {kind of linear layer: scheme} of those that can be kept, and a notice on packed kinds that cannot.

    Raises:
        UsageError: there is nothing to keep.
    """
    found: dict[str, set[Scheme | None]] = {}
    for parameter in parameters(source.config):
        if parameter.quantizable:
            found.setdefault(kind_of(parameter), set()).add(source.kept(parameter))
    uniform = {kind: next(iter(schemes)) for kind, schemes in found.items() if len(schemes) == 1}
    kept = {kind: scheme for kind, scheme in uniform.items() if scheme is not None}
    mixed = [kind for kind, schemes in found.items() if len(schemes) > 1]
    if not kept:
        raise UsageError(
            "--keep has nothing to copy: no matrix, such as q or w1, has the same 4-bit or 8-bit format in all "
            "layers of the source.",
            hint="GGUF's Q4_0 and Q8_0, symmetric GPTQ (without act-order) and AWQ, and int4 or int8 "
            "compressed-tensors can be kept.",
        )
    if not mixed:
        return kept, ()
    return kept, (f"{' and '.join(mixed)}: quantized again, because the source has them in several schemes.",)


def check_scales(packed: PackedLinear, module: str, dtype: torch.dtype) -> None:
    """Refuse a kept layer whose scales do not have the folder's dtype, are not finite, or are too large.

    Raises:
        ModelFileError: with the linear layer's name.
    """
    scale = packed.tensors["weight_scale"]
    if scale.dtype != dtype:
        found, wanted = (str(kind).removeprefix("torch.") for kind in (scale.dtype, dtype))
        raise ModelFileError(
            f"{module} has {found} scales, but other linear layers have {wanted}; all must have the same dtype.",
            hint="Omit --keep.",
        )
    largest = float(scale.float().abs().max()) * 2 ** (packed.scheme.bits - 1)
    if not largest <= torch.finfo(dtype).max:
        raise ModelFileError(
            f"{module} has scales that are NaN, infinite or too large for {str(dtype).removeprefix('torch.')}.",
            hint="The checkpoint is damaged: download it again.",
        )


def kept_dtype(source: Source) -> torch.dtype:
    """Return the dtype of a source's scales that can be kept."""
    first = next(parameter for parameter in parameters(source.config) if source.kept(parameter) is not None)
    return source.packed(first.module).tensors["weight_scale"].dtype
