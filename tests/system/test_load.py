"""The share of the processors that other programs use, and what is said about measurements meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixq.system import load
from mixq.system.load import DISTURBED, Work, current_load, is_disturbed, marks

CPUS = os.cpu_count() or 1


def test_own_work_is_not_that_of_others() -> None:
    before, after = Work(10.0, 100.0, 3.0), Work(12.0, 100.0 + 1.5 * CPUS, 3.0 + 0.5 * CPUS)
    assert after.of_others(before) == pytest.approx(0.5)


@pytest.mark.parametrize(("busy", "own", "share"), [(0.0, 1.0, 0.0), (99.0 * CPUS, 0.0, 1.0)])
def test_clocks_that_disagree_stay_within_bounds(busy: float, own: float, share: float) -> None:
    assert Work(2.0, busy, own).of_others(Work(0.0, 0.0, 0.0)) == share


def test_too_short_a_time_tells_nothing() -> None:
    assert Work(0.05, 1.0, 0.0).of_others(Work(0.0, 0.0, 0.0)) is None


def test_busy_time_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 4000 500 6 7 8 0 0\ncpu0 1 2 3\n")
    monkeypatch.setattr(load, "_STAT", tmp_path / "stat")
    assert Work.now().busy == (100 + 20 + 30 + 6 + 7 + 8) / os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text("not what Linux writes\n")
    assert Work.now().busy is None
    assert current_load() is None


def test_only_disturbed_measurements_are_marked() -> None:
    assert not is_disturbed(None)
    assert not is_disturbed(DISTURBED)
    assert is_disturbed(DISTURBED + 0.01)
    (line,) = marks([("pp8", 0.05), ("tg4", 0.341), ("tg8", None)])
    assert line == "tg4 was measured while other programs used 34% of the processor, so it may be faster."
