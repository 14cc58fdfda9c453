"""The jobs that turn a checkpoint or a folder of mixq into another folder: unquantized, or for other engines.

Contract: both are ordinary jobs (`mixq.quantize.job`), resumed and refused in the same way; a folder of mixq may be the
source.
"""

from __future__ import annotations

from pathlib import Path

from mixq.errors import UsageError
from mixq.quantize.job import Job
from mixq.quantize.keep import kept_kinds
from mixq.quantize.sources.source import Source


def unquantized_job(source: Source, target: Path | str) -> Job:
    """Return the job that stores every weight in bfloat16, in Hugging Face's names; raises what `Job` raises."""
    return Job(source, target, format="bf16")


def compressed_tensors_job(source: Source, target: Path | str, format: str = "w4") -> Job:
    """Return the job that makes a folder which transformers, vLLM and SGLang open; raises what `Job` raises.

    Linears that the source has as w4 or w8 are copied without loss where such a folder can hold them; all others get
    `format` (w4 or w8). In a default nl4 folder k and v are w8 already, so q becomes w8 too (the three must have one
    scheme), the experts become `format`, and lm_head, which such folders have unquantized, becomes bfloat16.
    """
    if format not in ("w4", "w8"):
        raise UsageError(f"a compressed-tensors folder is made with --format w4 or w8, not {format}.")
    try:
        kept_kinds(source)
    except UsageError:  # nothing to keep
        return Job(source, target, format=format)
    return Job(source, target, format=format, keep=True)
