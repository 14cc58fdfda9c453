"""The limits that Linux sets a process: its control group (v2) and those around it.

Contract: files are read, nothing is changed. A container sees its own group as the outermost; systemd nests them
(`systemd-run -p MemoryMax=16G`), and each of them may set a limit. Where there are no such groups (other systems,
version 1), there is no limit here. Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

Limit = TypeVar("Limit", int, float)

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_GIVES_WAY = ("active_file", "inactive_file", "slab_reclaimable")


def memory_limit() -> int | None:
    """Return the bytes that this process may take, all that shares its group included."""
    return _narrowest(_number(group / "memory.max") for group in _groups())


def memory_left() -> int | None:
    """Return the bytes that may still be taken. Cached files count as use to the kernel, but give way: not so here."""
    return _narrowest(_left(group) for group in _groups())


def cpu_limit() -> float | None:
    """Return how many CPUs' time this process may use, all that shares its group included."""
    return _narrowest(_cpus(group) for group in _groups())


def _groups() -> list[Path]:
    """Return the folders of this process's group and of those around it."""
    inside = next((line[3:] for line in _text(_OWN).splitlines() if line.startswith("0::/")), "/")
    group = _ROOT / inside.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(_ROOT))]


def _narrowest(limits: Iterable[Limit | None]) -> Limit | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _left(group: Path) -> int | None:
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return None
    fields = (line.partition(" ") for line in _text(group / "memory.stat").splitlines())
    cached = sum(int(value) for name, _, value in fields if name in _GIVES_WAY and value.isdigit())
    return max(0, limit - max(0, used - cached))


def _cpus(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
