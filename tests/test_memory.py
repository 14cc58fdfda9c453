"""Memory as the system reports it, and a container's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixq import memory


def test_the_figures_are_in_order() -> None:
    total, available, peak = memory.total_memory(), memory.available_memory(), memory.peak_memory()
    assert total is not None
    assert available is not None
    assert peak is not None
    assert 2**20 < available <= total
    assert 2**20 < peak <= total


def test_a_container_limits_what_is_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    assert memory.available_memory() == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert memory.available_memory() == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() == 8000 * 1024
    (tmp_path / "meminfo").unlink()
    assert memory.available_memory() == memory.total_memory()
