"""Counting the cores that a process may use, on machines of many shapes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixq.system import cores, memory
from mixq.system.cores import physical_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a word about its topology and without a quota."""
    monkeypatch.setattr(cores, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path)
    return tmp_path


def add_cpu(machine: Path, cpu: int, package: int, core: int) -> None:
    folder = machine / f"cpu{cpu}" / "topology"
    folder.mkdir(parents=True)
    (folder / "physical_package_id").write_text(f"{package}\n")
    (folder / "core_id").write_text(f"{core}\n")


def allow(monkeypatch: pytest.MonkeyPatch, cpus: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cpus, raising=False)


def test_threads_of_one_core_count_once(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(8):
        add_cpu(machine, cpu, package=0, core=cpu % 4)
    allow(monkeypatch, set(range(8)))
    assert physical_cores() == 4
    allow(monkeypatch, {0, 4})
    assert physical_cores() == 1
    allow(monkeypatch, {0, 5})
    assert physical_cores() == 2


def test_cores_of_two_sockets_have_the_same_numbers(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(4):
        add_cpu(machine, cpu, package=cpu // 2, core=cpu % 2)
    allow(monkeypatch, set(range(4)))
    assert physical_cores() == 4


def test_a_cpu_that_says_nothing_is_a_core(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_cpu(machine, 0, package=0, core=0)
    allow(monkeypatch, {0, 1, 2})
    assert physical_cores() == 3


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 4),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("900000 100000\n", 4),
        ("", 4),
        ("100000 0\n", 4),
        ("nonsense\n", 4),
    ],
)
def test_a_containers_quota(machine: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    allow(monkeypatch, {0, 1, 2, 3})
    (machine / "cpu.max").write_text(quota)
    assert physical_cores() == expected


def test_a_system_without_affinity(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert physical_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert physical_cores() == 1


def test_this_machine() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
