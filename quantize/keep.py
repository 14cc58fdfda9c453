"""`--keep`: which packed Linears of a source are copied as they are.

Contract: a kind of Linear (w1, q, lm_head ...) is kept only if every layer and expert has it in the same scheme: a
folder's config.json describes kinds, and a reader expects no more. Only the source's headers are read.
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
    """Return {kind of Linear: scheme} of what can be kept, and a sentence on kinds that are packed but cannot be.

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
            "--keep finds nothing to keep: no kind of Linear of the source is w4 or w8 throughout.",
            hint="GGUF's Q4_0 and Q8_0, symmetric GPTQ without act-order, and int4 or int8 compressed-tensors can be.",
        )
    if not mixed:
        return kept, ()
    return kept, (f"{' and '.join(mixed)}: not kept, the source has them in several schemes; quantized again.",)


def check_scales(packed: PackedLinear, module: str, dtype: torch.dtype) -> None:
    """Refuse a kept Linear whose scales are not of the folder's dtype, not finite, or too large for it.

    Raises:
        ModelFileError: with the Linear's name.
    """
    scale = packed.tensors["weight_scale"]
    if scale.dtype != dtype:
        found, wanted = (str(kind).removeprefix("torch.") for kind in (scale.dtype, dtype))
        raise ModelFileError(
            f"{module} has scales in {found}, other Linears in {wanted}; a folder has one dtype.",
            hint="Leave --keep out.",
        )
    largest = float(scale.float().abs().max()) * 2 ** (packed.scheme.bits - 1)
    if not largest <= torch.finfo(dtype).max:
        raise ModelFileError(
            f"{module} has scales that are NaN, infinite or too large for {str(dtype).removeprefix('torch.')}.",
            hint="The checkpoint is damaged: download it again.",
        )


def kept_dtype(source: Source) -> torch.dtype:
    """Return the dtype of the kept scales of a source that has something to keep."""
    first = next(parameter for parameter in parameters(source.config) if source.kept(parameter) is not None)
    return source.packed(first.module).tensors["weight_scale"].dtype
