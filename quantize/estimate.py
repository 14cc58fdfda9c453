"""Estimates the time of a job before it starts.

Contract: the scale search is timed on a few weights of each scheme of the job; reading, writing and hashing are not
included, so the estimate is a lower bound. The source is not read.
"""

from __future__ import annotations

import time
from collections import Counter

import torch

from mixq.formats.scheme import Scheme
from mixq.quantize.job_plan import JobPlan
from mixq.quantize.layout import Shard, all_items
from mixq.quantize.scale_search import search

SAMPLE = (256, 4096)


def weights_left(plan: JobPlan) -> int:
    """Return how many weights are in unfinished shards."""
    return sum(shard.weights for shard in _unfinished(plan))


def search_seconds(plan: JobPlan) -> float:
    """Return the approximate seconds of the scale search for the unfinished shards, on this computer."""
    left: Counter[Scheme] = Counter()
    for item in all_items(_unfinished(plan)):
        if item.scheme is not None and not item.kept:
            left[item.scheme] += item.parameter.numel
    sample = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0))
    return sum(weights * _seconds(sample, scheme, plan) / sample.numel() for scheme, weights in left.items())


def _unfinished(plan: JobPlan) -> list[Shard]:
    journal = plan.unfinished()
    return [shard for shard in plan.shards if journal is None or shard.file not in journal.shards]


def _seconds(sample: torch.Tensor, scheme: Scheme, plan: JobPlan) -> float:
    """Return the time of a second search; the first one loads libraries and starts threads."""
    search(sample[:16], scheme, table=plan.table, scale_dtype=plan.dtype)
    begun = time.perf_counter()
    search(sample, scheme, table=plan.table, scale_dtype=plan.dtype)
    return time.perf_counter() - begun
