"""Memory of the computer: how much there is, how much this process may use, and how much it uses.

Contract: reads the operating system's information; allocates nothing. Sizes are in bytes; None if the system does not
report one. A container sees its control group (version 2) as the outermost; systemd nests them
(`systemd-run -p MemoryMax=16G`), and each of them may set a limit: the smallest applies. Without such groups there is
no limit. Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

Limit = TypeVar("Limit", int, float)

_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")


def total_memory() -> int | None:
    """Return the machine's physical memory."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int | None:
    """Return how much memory can be used without swapping: free and reclaimable, within the limits of control
    groups."""
    available = _meminfo().get("MemAvailable")
    if available is None:
        return total_memory()
    return smallest([available, *map(_left_in, control_groups())])


def free_memory() -> int | None:
    """Return how much memory can be used before the system evicts cached files, within the limits of control groups."""
    free = _meminfo().get("MemFree")
    if free is None:
        return None
    return smallest([free, *(_left_in(group, cached=False) for group in control_groups())])


def swapped_memory() -> int:
    """Return the bytes of swap that are in use."""
    fields = _meminfo()
    return fields.get("SwapTotal", 0) - fields.get("SwapFree", 0)


def memory_limit() -> int | None:
    """Return the bytes that the processes of this control group may use together."""
    return smallest(_number(group / "memory.max") for group in control_groups())


def resident_memory() -> int | None:
    """Return the physical memory that this process uses, mapped files included; on other systems than Linux, the most
    it has used."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int | None:
    """Return the most physical memory that this process has used."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def control_groups() -> list[Path]:
    """Return the folders of this process's control group and of its parents."""
    inside = next((line[3:] for line in text_of(_OWN_GROUP).splitlines() if line.startswith("0::/")), "/")
    group = _CONTROL_GROUPS / inside.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(_CONTROL_GROUPS))]


def smallest(limits: Iterable[Limit | None]) -> Limit | None:
    """Return the smallest limit; None if there is none."""
    return min((limit for limit in limits if limit is not None), default=None)


def text_of(path: Path) -> str:
    """Return the content of a file under /proc or /sys; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _meminfo() -> dict[str, int]:
    fields = (line.split() for line in text_of(_MEMINFO).splitlines())  # MemTotal: 9000 kB
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields if len(field) > 1 and field[1].isdigit()}


def _left_in(group: Path, *, cached: bool = True) -> int | None:
    """Return the bytes that a control group has left.

    The kernel counts cached files as used, but can reclaim them: they are counted as left unless `cached` is False.
    """
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return None
    if not cached:
        return max(0, limit - used)
    fields = (line.partition(" ") for line in text_of(group / "memory.stat").splitlines())
    reclaimable = sum(int(value) for name, _, value in fields if name in _RECLAIMABLE and value.isdigit())
    return max(0, limit - max(0, used - reclaimable))


def _number(path: Path) -> int | None:
    text = text_of(path).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit
