"""Synthetic routing has the hit rates that it is made for; a trace is played again and again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mixq.errors import UsageError
from mixq.experts.cache import ExpertCache
from mixq.experts.routing import Trace, draw_trace, parse_routing
from tests.experts.invariants import check_cache

MIXTRAL_CURVE = (0.22, 0.39, 0.53, 0.66, 0.77, 0.86, 0.93)
TOKENS, LAYERS = 3000, 8
SHAPE = {"layers": LAYERS, "experts": 8, "active": 2}


def trace_of(text: str) -> Trace:
    return draw_trace(parse_routing(text, **SHAPE, seed=7), TOKENS, **SHAPE)


def hit_rate(trace: Trace, slots: int, policy: str = "lru") -> float:
    """Through the cache: what a layer needs is requested at once, then every miss is loaded."""
    cache = ExpertCache([slots] * LAYERS, 8, policy)
    for token in trace.tokens:
        for layer, experts in enumerate(token):
            hits = cache.request(layer, experts)
            for slot in hits.values():
                cache.acquire(layer, slot)
            loaded = [cache.begin_load(layer, expert) for expert in experts if expert not in hits]
            for slot in loaded:
                if slot is not None:
                    cache.finish_load(layer, slot)
            for slot in hits.values():
                cache.release(layer, slot)
    check_cache(cache)
    hits, misses = (sum(getattr(c, name) for c in cache.counters) for name in ("hits", "misses"))
    assert hits + misses == TOKENS * LAYERS * 2
    return hits / (hits + misses)


def simulated_lru(passes: Sequence[Sequence[int]], slots: int) -> int:
    """Ten lines that know nothing of the cache: a list, the most recent last."""
    recent: list[int] = []
    hits = 0
    for experts in passes:
        present = set(recent[-slots:])
        hits += len(present & set(experts))
        for expert in experts:
            if expert in recent:
                recent.remove(expert)
            recent.append(expert)
    return hits


@pytest.mark.parametrize("slots", range(1, 8))
def test_lru_on_sticky_routing_is_what_an_independent_simulation_says(slots: int) -> None:
    trace = trace_of("sticky:0.39")
    expected = sum(simulated_lru([token[layer] for token in trace.tokens], slots) for layer in range(LAYERS)) / (
        TOKENS * LAYERS * 2
    )
    assert hit_rate(trace, slots) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("slots", range(1, 8))
def test_lru_on_mixtral_routing_has_the_reported_hit_rates(slots: int) -> None:
    assert hit_rate(trace_of("mixtral"), slots) == pytest.approx(MIXTRAL_CURVE[slots - 1], abs=0.03)


@pytest.mark.parametrize("slots", range(1, 8))
def test_lfu_on_mixtral_routing_is_close_to_lru(slots: int) -> None:
    trace = trace_of("mixtral")
    assert hit_rate(trace, slots, "lfu") == pytest.approx(hit_rate(trace, slots), abs=0.03)


def reuse(trace: Trace) -> float:
    pairs = zip(trace.tokens, trace.tokens[1:], strict=False)
    again = sum(len(set(a) & set(b)) for before, after in pairs for a, b in zip(before, after, strict=True))
    return again / ((len(trace.tokens) - 1) * LAYERS * 2)


def test_an_expert_is_used_again_as_often_as_asked() -> None:
    for share in (0.0, 0.39, 1.0):
        assert reuse(trace_of(f"sticky:{share}")) == pytest.approx(share, abs=0.01)
    assert reuse(trace_of("uniform")) == pytest.approx(0.25, abs=0.01)
    assert reuse(trace_of("mixtral")) == pytest.approx(0.39, abs=0.03)


def test_the_same_seed_is_the_same_routing_and_layers_differ() -> None:
    assert trace_of("mixtral") == trace_of("mixtral")
    trace = trace_of("mixtral")
    favourites = [max(range(8), key=lambda e, i=i: sum(e in token[i] for token in trace.tokens)) for i in range(LAYERS)]
    assert len(set(favourites)) > 1


def test_a_trace_routes_again_and_again() -> None:
    trace = draw_trace(parse_routing("uniform", **SHAPE), 5, **SHAPE)
    asked: list[Path] = []

    def read(path: Path) -> Trace:
        asked.append(path)
        return trace

    routing = parse_routing("trace  some file.mqt ", **SHAPE, read_trace=read)
    assert asked == [Path("some file.mqt")]
    assert draw_trace(routing, 10, **SHAPE).tokens == trace.tokens * 2
    with pytest.raises(UsageError, match="8 layers"):
        parse_routing("trace t.mqt", layers=32, experts=8, active=2, read_trace=read)


@pytest.mark.parametrize(
    "text", ["", "sticky", "sticky:2", "sticky:x", "uniform:1", "mixtrall", "trace", "trace ", "trace t.mqt"]
)
def test_names_that_are_not_known_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_routing(text, **SHAPE)


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="mixtral"):
        parse_routing("mixtrall", **SHAPE)
    with pytest.raises(UsageError, match="at least 4 experts"):
        parse_routing("sticky:0.5", layers=1, experts=3, active=2)
