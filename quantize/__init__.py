"""The offline job: a checkpoint becomes a model folder of 4-bit and 8-bit groups.

`quantize(source, target)` does it; `Job` is the same with events and a dry run; `verify(folder)` checks a result.
"""

from mixq.quantize.job import Job, quantize
from mixq.quantize.job_plan import DryRun
from mixq.quantize.verify import VerifyReport, verify

__all__ = ["DryRun", "Job", "VerifyReport", "quantize", "verify"]
