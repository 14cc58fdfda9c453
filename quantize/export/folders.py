"""The jobs that turn a checkpoint or a folder of mixq into another folder: unquantized, or for other engines.

Contract: both are ordinary jobs (`mixq.quantize.job`), resumed and refused as those are; a folder of mixq may be the
source. Nothing is read or written here.
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

    What the source has as w4 or w8 goes over without loss where such a folder can hold it; `format` (w4 or w8) is for
    all else. In a default nl4 folder k and v are w8 already, so q becomes w8 too (the three must be alike), the experts
    become `format`, and lm_head, which such folders have unquantized, goes back to bfloat16.
    """
    if format not in ("w4", "w8"):
        raise UsageError(f"a compressed-tensors folder is made with --format w4 or w8, not {format}.")
    try:
        kept_kinds(source)
    except UsageError:  # nothing to keep
        return Job(source, target, format=format)
    return Job(source, target, format=format, keep=True)
