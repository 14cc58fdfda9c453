"""Memory as the system reports it, and a container's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixq.system import memory
from mixq.system.cores import cpu_limit


def test_the_figures_are_in_order() -> None:
    total, available, peak = memory.total_memory(), memory.available_memory(), memory.peak_memory()
    assert total is not None
    assert available is not None
    assert peak is not None
    assert 2**20 < available <= total
    assert 2**20 < peak <= total


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tree of control groups with two levels around this process's own, and a machine with 8 MB to take."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "own")
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    (tmp_path / "groups" / "user" / "session").mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/user/session\n")
    return tmp_path / "groups"


def test_a_container_limits_what_is_available(groups: Path) -> None:
    assert memory.available_memory() == 8000 * 1024
    (groups / "memory.max").write_text("5000000\n")
    assert memory.available_memory() == 8000 * 1024, "without its use, a limit says nothing"
    (groups / "memory.current").write_text("2000000\n")
    assert memory.available_memory() == 3_000_000
    (groups / "memory.max").write_text("max\n")
    assert memory.available_memory() == 8000 * 1024
    (groups.parent / "meminfo").unlink()
    assert memory.available_memory() == memory.total_memory()


def test_files_in_the_cache_of_a_container_are_no_use(groups: Path) -> None:
    (groups / "memory.max").write_text("5000000\n")
    (groups / "memory.current").write_text("4900000\n")
    (groups / "memory.stat").write_text("anon 900000\ninactive_file 3000000\nactive_file 1000000\nfile nonsense\n")
    assert memory.available_memory() == 4_100_000


@pytest.mark.parametrize("level", ["", "user", "user/session"])
def test_the_narrowest_group_counts(groups: Path, level: str) -> None:
    for place, limit in (("", 7_000_000), ("user", 6_000_000), ("user/session", 5_500_000)):
        (groups / place / "memory.max").write_text(f"{1_000_000 if place == level else limit}\n")
        (groups / place / "memory.current").write_text("400000\n")
        (groups / place / "cpu.max").write_text("50000 100000\n" if place == level else "max 100000\n")
    assert memory.available_memory() == 600_000
    assert memory.memory_limit() == 1_000_000
    assert cpu_limit() == 0.5


def test_a_group_that_holds_more_than_it_may_leaves_nothing(groups: Path) -> None:
    (groups / "memory.max").write_text("5000000\n")
    (groups / "memory.current").write_text("6000000\n")
    assert memory.available_memory() == 0


def test_free_memory_leaves_cached_files_alone(groups: Path) -> None:
    assert memory.free_memory() is None
    (groups.parent / "meminfo").write_text("MemFree: 6000 kB\nMemAvailable:    8000 kB\n")
    assert memory.free_memory() == 6000 * 1024
    (groups / "memory.max").write_text("5000000\n")
    (groups / "memory.current").write_text("4900000\n")
    (groups / "memory.stat").write_text("inactive_file 3000000\n")
    assert memory.free_memory() == 100_000
    assert memory.available_memory() == 3_100_000
