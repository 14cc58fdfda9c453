"""The hits of all layers and numbers of slots at once are, to the last one, those of the cache and its policies."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.experts.routing import draw_trace, parse_routing
from mixq.plan.hit_curves import POLICIES, hit_curves, most_used
from mixq.plan.replay import belady, replay_hits


def made_up(tokens: int, layers: int, experts: int, active: int, seed: int) -> np.ndarray:
    """Favourites that change in the middle, experts that hardly anybody uses, and an order within the pass."""
    draw = random.Random(seed)
    weights = [[0.02 + draw.random() ** 4 for _ in range(experts)] for _ in range(2 * layers)]
    rows = []
    for token in range(tokens):
        row = []
        for layer in range(layers):
            chosen: list[int] = []
            likely = weights[2 * layer + (2 * token > tokens)]
            while len(chosen) < active:
                expert = draw.choices(range(experts), likely)[0]
                if expert not in chosen:
                    chosen.append(expert)
            row.append(chosen)
        rows.append(row)
    return np.array(rows, dtype=np.uint8)


def through_the_cache(choices: np.ndarray, experts: int, policy: str) -> list[list[int]]:
    """Hits [L, E + 1] through the cache itself."""
    trace = choices.tolist()
    popular = most_used(choices, experts) if policy == "static" else None
    by_slots = [
        replay_hits(
            trace,
            [slots] * choices.shape[1],
            belady(trace) if policy == "belady" else policy,
            "fetch",
            experts=experts,
            popular=popular,
        )
        for slots in range(experts + 1)
    ]
    return [[counts[layer].hits for counts in by_slots] for layer in range(choices.shape[1])]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 120),
    layers=st.integers(1, 3),
    experts=st.integers(1, 9),
    active=st.integers(1, 4),
    parts=st.integers(1, 12),
    early=st.integers(0, 20),
    seed=st.integers(0, 10**6),
)
def test_every_hit_is_the_caches(
    policy: str, tokens: int, layers: int, experts: int, active: int, parts: int, early: int, seed: int
) -> None:
    choices = made_up(tokens, layers, experts, min(active, experts), seed)
    found = hit_curves(choices, experts, policy, parts=parts, early=early)
    assert found.tolist() == through_the_cache(choices, experts, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("routing", ["uniform", "sticky:0.39", "mixtral"])
def test_also_of_a_longer_trace_cut_as_it_chooses_itself(policy: str, routing: str) -> None:
    shape = {"layers": 2, "experts": 8, "active": 2}
    choices = np.array(draw_trace(parse_routing(routing, **shape, seed=3), 1500, **shape).tokens, dtype=np.uint8)
    found = hit_curves(choices, 8, policy)
    assert found.tolist() == through_the_cache(choices, 8, policy)
    assert hit_curves(choices, 8, policy, parts=7, early=3).tolist() == found.tolist()


def test_ends_of_a_curve() -> None:
    choices = made_up(200, 3, 8, 2, seed=1)
    for policy in POLICIES:
        curves = hit_curves(choices, 8, policy)
        assert (curves[:, 0] == 0).all()
        assert (curves[:, 8] == 400).all()


def test_most_used_names_the_lower_number_of_equals() -> None:
    choices = np.array([[[3, 1]], [[3, 0]], [[1, 0]]], dtype=np.uint8)
    assert most_used(choices, 5) == [[0, 1, 3, 2, 4]]


def test_no_curve_is_above_that_of_the_policy_that_knows_the_future() -> None:
    choices = np.array(
        draw_trace(
            parse_routing("mixtral", layers=1, experts=8, active=2, seed=5), 2000, layers=1, experts=8, active=2
        ).tokens,
        dtype=np.uint8,
    )
    curves = {policy: hit_curves(choices, 8, policy)[0] for policy in POLICIES}
    for policy in ("lru", "lfu"):  # `static` lets some experts pass by, which can be better with one slot
        assert (curves[policy] <= curves["belady"]).all()
    uses = sorted(np.bincount(choices.ravel(), minlength=8).tolist(), reverse=True)
    assert curves["static"][3] == sum(uses[:3])
