"""Replays: the cache alone against ten lines of its own, and time against figures that are known beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixq.experts.cost import CostModel, Hardware
from mixq.experts.scheduler import CHUNK, Scheduler
from mixq.plan.replay import ReplayResult, Trace, belady, replay, replay_hits
from tests.plan.computers import COMPUTERS
from tests.plan.simulation import LAYERS, MIXTRAL, Case, cases, routing, run, table

TOKENS = 200
MODEL = replace(MIXTRAL, layers=LAYERS)


@pytest.fixture(scope="module")
def simulated() -> list[Case]:
    return list(cases(TOKENS))


def test_auto_is_never_slower_than_the_better_simple_mode_by_more_than_a_twentieth(simulated: list[Case]) -> None:
    assert len(simulated) == 3 * len(COMPUTERS)
    slower = {
        (case.computer, case.routing): case.speed("auto") / best
        for case in simulated
        if case.speed("auto") < 0.95 * (best := max(case.speed(mode) for mode in case.results))
    }
    assert not slower


def test_auto_beats_both_where_both_help(simulated: list[Case]) -> None:
    """With favourites, slots are worth filling while the CPU computes: nobody who does only one thing keeps up."""
    for case in simulated:
        if case.routing == "mixtral":
            assert case.speed("auto") > case.better, case.computer
        if case.routing == "mixtral" and case.computer.startswith(("laptop", "desktop")):
            assert case.speed("auto") > 1.1 * case.better, case.computer


def test_a_miss_is_shared_between_cpu_and_link_where_they_are_of_a_kind() -> None:
    """Nothing is cached: the CPU alone reads 22 GB/s, the link 25, both together 40."""
    trace, old = routing("uniform", 50), COMPUTERS["four-old-cores"]
    speed = {mode: run(old, trace, 0, mode).tokens_per_second for mode in ("cpu", "fetch", "auto")}
    assert speed["auto"] > 1.4 * max(speed["cpu"], speed["fetch"])


@pytest.mark.parametrize(
    ("computer", "mode", "low", "high"),
    [
        ("laptop-8gb", "fetch", 2.3, 3.1),  # 2.7
        ("laptop-8gb", "auto", 15, 19),
        ("desktop-24gb", "fetch", 30, 40),  # 33
        ("desktop-24gb", "auto", 50, 72),  # 50 to 70
    ],
)
def test_known_limits_come_out(simulated: list[Case], computer: str, mode: str, low: float, high: float) -> None:
    case = next(case for case in simulated if (case.computer, case.routing) == (computer, "mixtral"))
    assert low < case.speed(mode) < high


def test_the_cpu_alone_has_its_known_limit() -> None:
    result = run(COMPUTERS["laptop-8gb"], routing("uniform", 20), 0, "cpu")
    assert 10.5 < result.tokens_per_second * LAYERS / MIXTRAL.layers < 12.5  # 11


def lru_hits(trace: Trace, layer: int, slots: int) -> int:
    """Ten lines that know nothing of the cache."""
    hits = 0
    there = list(range(slots))
    for token in trace:
        missing = []
        for expert in token[layer]:
            if expert in there:
                hits += 1
                there.remove(expert)
                there.append(expert)
            else:
                missing.append(expert)
        held = [expert for expert in token[layer] if expert in there]
        for expert in missing:
            if len(held) < slots:
                there.pop(0)
                there.append(expert)
                held.append(expert)
    return hits


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 7])
def test_hits_are_those_of_a_plain_lru(slots: int) -> None:
    trace = routing("sticky:0.39", 400)
    counts = replay_hits(trace, [slots] * LAYERS, "lru", "fetch")
    for layer, count in enumerate(counts):
        assert count.hits + count.misses == 2 * len(trace)
        assert count.hits == pytest.approx(lru_hits(trace, layer, slots), abs=8)


def test_nobody_beats_the_policy_that_knows_the_future() -> None:
    trace = routing("mixtral", 300)
    hits = {
        name: sum(count.hits for count in replay_hits(trace, [3] * LAYERS, policy))
        for name, policy in (("best", belady(trace)), ("lru", "lru"), ("lfu", "lfu"), ("random", "random"))
    }
    assert hits["best"] > max(hits["lru"], hits["lfu"], hits["random"])


def test_hits_of_auto_are_the_schedulers() -> None:
    trace = routing("mixtral", 200)
    cost = CostModel(COMPUTERS["desktop-24gb"].hardware, MODEL)
    first, second = (
        replay_hits(trace, [4] * LAYERS, miss="auto", scheduler=Scheduler(cost, "auto", adapt=False)) for _ in range(2)
    )
    assert first == second
    assert sum(count.hits for count in first) > 0


# Time

STILL = Hardware("no overheads", 50e9, 1e15, 500e9, 1e15, 10e9, 0.0, 0.0, 0.0, ram_bandwidth=60e9)


def play(trace: Trace, slots: int, miss: str, hardware: Hardware = STILL) -> ReplayResult:
    return replay(trace, hardware, MODEL, [slots] * LAYERS, miss=miss)


def rest(tokens: int) -> float:
    """Seconds that are not the experts'."""
    cost = CostModel(STILL, MODEL)
    return tokens * (LAYERS * cost.trunk_seconds() + cost.head_seconds())


def test_each_place_alone_takes_what_its_bandwidth_says() -> None:
    trace = [[(0, 1)] * LAYERS] * 10
    nbytes = 10 * LAYERS * 2 * MODEL.expert_bytes
    cpu, fetch, hit = play(trace, 0, "cpu"), play(trace, 0, "fetch"), play(trace, 2, "cpu")
    assert cpu.seconds == pytest.approx(nbytes / 50e9 + rest(10))
    assert cpu.copied_bytes == cpu.hits == 0
    assert cpu.share_of_limit == pytest.approx(1)
    assert hit.seconds == pytest.approx(nbytes / 500e9 + rest(10))
    assert hit.hit_rate == 1
    # Of two copies the first is computed while the second arrives.
    assert fetch.seconds == pytest.approx(nbytes / 10e9 + nbytes / 2 / 500e9 + rest(10))
    assert fetch.copied_bytes == fetch.fetches * MODEL.expert_bytes == nbytes


def test_cpu_and_accelerator_compute_at_the_same_time() -> None:
    trace = [[(0, 5)] * LAYERS] * 10
    result = replay(trace, STILL, MODEL, [1] * LAYERS, "static", "cpu")
    each = 10 * LAYERS * MODEL.expert_bytes
    assert result.seconds == pytest.approx(each / 50e9 + rest(10))
    assert result.overlap_seconds == pytest.approx(each / 500e9)
    assert (result.hits, result.on_cpu) == (10 * LAYERS, 10 * LAYERS)


def test_a_copy_in_the_background_slows_a_cpu_that_reads_all_the_ram() -> None:
    """Uniform routing, one slot: the simple mode copies all the time, and 10 of 50 GB/s are the CPU's no more."""
    trace = routing("uniform", 40)
    wide, narrow = play(trace, 1, "cpu"), play(trace, 1, "cpu", replace(STILL, ram_bandwidth=0.0))
    assert wide.copy_seconds > 0.9 * wide.seconds
    assert narrow.seconds > 1.1 * wide.seconds


def test_demand_passes_the_background() -> None:
    """Wrong guesses are copied in half of the layers; who is waited for loses a chunk to them at most."""
    trace = [[(2 * token % 6, 2 * token % 6 + 1)] * LAYERS for token in range(1, 31)]  # nobody twice in a row
    guesses = [[(7,)] * LAYERS for _ in trace]
    quotas = [0, 1] * (LAYERS // 2)
    plain = replay(trace, STILL, MODEL, quotas, miss="fetch")
    wrong = replay(trace, STILL, MODEL, quotas, miss="fetch", predicted=[guesses])
    assert plain.hits == wrong.hits == 0
    assert wrong.copied_bytes > plain.copied_bytes
    chunks = 30 * LAYERS * CHUNK / STILL.copy_bandwidth
    assert wrong.seconds <= plain.seconds + chunks


def test_prefetching_what_will_be_needed_helps_who_waits_for_copies() -> None:
    trace = routing("uniform", 60)
    model = replace(MODEL, trunk_bytes=1_000_000_000)  # 2 ms a layer, and a copy takes 1.6
    hardware = replace(STILL, copy_bandwidth=60e9, ram_bandwidth=200e9)
    plain = replay(trace, hardware, model, [4] * LAYERS, miss="fetch")
    ahead = replay(trace, hardware, model, [4] * LAYERS, miss="fetch", predicted=[trace])
    assert ahead.seconds < 0.95 * plain.seconds


def test_what_is_counted_adds_up(simulated: list[Case]) -> None:
    for case in simulated:
        for result in case.results.values():
            assert result.requests == result.hits + result.waits + result.fetches + result.on_cpu
            assert result.requests == TOKENS * LAYERS * 2
            assert max(result.cpu_seconds, result.gpu_seconds, result.copy_seconds) <= result.seconds * 1.000001
            assert 0 < result.share_of_limit <= 1.000001
            assert result.overlap_seconds <= result.cpu_seconds + result.copy_seconds + result.gpu_seconds


def test_the_table_has_a_line_for_each_case() -> None:
    lines = table(20).splitlines()
    assert len(lines) == 2 + 3 * len(COMPUTERS)
    assert len({line.count("|") for line in lines}) == 1
