"""Predictions are compared with what was used: by layer, by how far ahead, and for the router's first choice."""

from __future__ import annotations

import pytest

from mixq.experts.lookahead import Recall


def filled() -> Recall:
    recall = Recall()
    recall.record(3, 1, [0, 1], [1, 0])
    recall.record(3, 1, [0, 1], [2, 1])
    recall.record(4, 1, [5, 6], [1, 2])
    recall.record(4, 2, [1, 7, 2], [1, 2])
    return recall


def test_recall_is_the_share_of_used_experts_that_were_named() -> None:
    recall = filled()
    assert recall.by_lookahead() == {1: pytest.approx(3 / 6), 2: pytest.approx(1.0)}
    assert recall.by_layer(1) == {3: pytest.approx(3 / 4), 4: 0.0}
    assert recall.by_layer(2) == {4: pytest.approx(1.0)}


def test_the_routers_first_choice_is_counted_apart() -> None:
    recall = filled()
    assert recall.first_choices(1) == pytest.approx(1 / 3), "in one pass of three"
    assert recall.first_choices(2) == 1.0


def test_before_the_first_prediction_there_is_nothing_to_say() -> None:
    recall = Recall()
    assert recall.by_lookahead() == recall.by_layer(1) == {}
    assert recall.first_choices(1) is None


def test_naming_more_does_not_count_twice_and_using_none_is_no_use() -> None:
    recall = Recall()
    recall.record(0, 1, [2, 2, 2], [2])
    recall.record(0, 1, [1], [])
    recall.record(0, 2, [1], [])
    assert recall.by_lookahead() == {1: 1.0}
