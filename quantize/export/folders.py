"""The job that turns a checkpoint or model folder into a folder for other engines.

Contract: an ordinary job (`mixq.quantize.job`), resumed and refused in the same way.
"""

from __future__ import annotations

from pathlib import Path

from mixq.errors import UsageError
from mixq.quantize.job import Job
from mixq.quantize.keep import kept_kinds
from mixq.quantize.sources.source import Source


def compressed_tensors_job(source: Source, target: Path | str, format: str = "w4") -> Job:
    """Return the job that writes a folder for transformers, vLLM and SGLang; raises what `Job` raises.

    Linear layers that the source has as w4 or w8 are copied without loss if such a folder can hold them; all others get
    `format` (w4 or w8). In a default nl4 folder k and v are w8 already, so q becomes w8 too (the three must have
    one scheme), the experts become `format`, and lm_head, which such folders have unquantized, becomes bfloat16.
    """
    if format not in ("w4", "w8"):
        raise UsageError(f"for a compressed-tensors folder, --format must be w4 or w8, not {format}.")
    try:
        kept_kinds(source)
    except UsageError:  # nothing to keep
        return Job(source, target, format=format)
    return Job(source, target, format=format, keep=True)
