"""How much memory there is, and how much this process has taken.

Contract: the operating system is asked, nothing is allocated. Sizes are in bytes. Where the system does not say
(Windows has neither), the answer is None.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mixq.system import control_group

_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")


def total_memory() -> int | None:
    """Return the machine's physical memory."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int | None:
    """Return what can be taken without swapping: free and reclaimable, within the control group of a container."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return total_memory()
    left = control_group.memory_left()
    return available if left is None else min(available, left)


def resident_memory() -> int | None:
    """Return the physical memory that this process holds now, mapped files included; elsewhere the most it has held."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int | None:
    """Return the most physical memory that this process has held."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
