"""What is counted adds up, and what overlapped is found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixq.experts.stats import ExpertCounters, ExpertStats
from mixq.experts.telemetry import overlapping

intervals = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=8)


def test_counters_between_two_moments() -> None:
    counters = ExpertCounters(requests=10, hits=4)
    before = replace(counters)
    counters.requests += 6
    counters.hits += 3
    since = counters.since(before)
    assert (since.requests, since.hits, since.hit_rate) == (6, 3, 0.5)
    assert before.requests == 10
    assert ExpertCounters().hit_rate is None


@given(intervals, intervals, intervals)
def test_overlap_is_the_time_in_which_two_are_busy(
    a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]]
) -> None:
    groups = [[(float(begin), float(begin + length)) for begin, length in group] for group in (a, b, c)]
    expected = sum(
        sum(any(begin <= second < end for begin, end in group) for group in groups) >= 2 for second in range(100)
    )
    assert overlapping(groups) == expected
    late = sum(sum(any(b <= s < e for b, e in group) for group in groups) >= 2 for s in range(30, 100))
    assert overlapping(groups, since=30.0) == late


def test_the_line_of_a_chat_and_the_json_document() -> None:
    counters = ExpertCounters(requests=200, hits=130, on_cpu=60, fetches=6, waits=4, uploaded_bytes=2_340_000_000)
    stats = ExpertStats(counters, {1: 0.87, 2: 0.8}, 0.5)
    line = stats.line()
    assert line == "experts: 65% hits · 30% on the CPU · 5% waited for · 87% predicted · 2.34 GB copied to the GPU"
    assert json.loads(json.dumps(stats.as_dict()))["recall"] == {"1": 0.87, "2": 0.8}
    assert ExpertStats(ExpertCounters()).line() == ""
    joined = ExpertStats.joined([stats, stats])
    assert joined.counters.requests == 400
    assert joined.limit_seconds == pytest.approx(1.0)
