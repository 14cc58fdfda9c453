"""How long a job takes, before it begins.

Contract: the scale search is measured on a few weights of each scheme of the job; reading, writing and hashing come on
top, so the figure is a lower bound. Nothing of the source is read.
"""

from __future__ import annotations

import time
from collections import Counter

import torch

from mixq.formats.scheme import Scheme
from mixq.quantize.job_plan import JobPlan
from mixq.quantize.scale_search import search

SAMPLE = (256, 4096)


def weights_left(plan: JobPlan) -> int:
    """Return how many weights are in shards that are not finished yet."""
    journal = plan.folder.look(plan.source.path)
    done = {} if journal is None else journal.shards
    return sum(shard.weights for shard in plan.shards if shard.file not in done)


def search_seconds(plan: JobPlan) -> float:
    """Return about how many seconds the scale search of what is left takes on this machine."""
    journal = plan.folder.look(plan.source.path)
    left: Counter[Scheme] = Counter()
    for shard in plan.shards:
        if journal is not None and shard.file in journal.shards:
            continue
        for item in shard.items:
            if item.scheme is not None and not item.kept:
                left[item.scheme] += item.parameter.numel
    sample = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0))
    return sum(weights * _seconds(sample, scheme, plan) / sample.numel() for scheme, weights in left.items())


def _seconds(sample: torch.Tensor, scheme: Scheme, plan: JobPlan) -> float:
    """Return the time of a second search; the first one loads libraries and starts threads."""
    search(sample[:16], scheme, table=plan.table, scale_dtype=plan.dtype)
    begun = time.perf_counter()
    search(sample, scheme, table=plan.table, scale_dtype=plan.dtype)
    return time.perf_counter() - begun
