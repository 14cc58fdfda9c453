"""How many cores this process may use: physical ones, within its affinity and its share of the machine.

Contract: no torch; the operating system is asked, never timed. Two hardware threads of one core share its load and
store units, so the second adds nothing to a kernel that waits for memory.
"""

from __future__ import annotations

import os
from pathlib import Path

from mixq.system import control_group

_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Return the number of physical cores open to this process, at least 1.

    Counted are the cores of the process's affinity; a container's CPU quota lowers the number.
    """
    if not hasattr(os, "sched_getaffinity"):
        return max(1, os.cpu_count() or 1)
    cpus = os.sched_getaffinity(0)
    cores = {_core(cpu) for cpu in cpus}
    quota = control_group.cpu_limit()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _core(cpu: int) -> tuple[str, str]:
    """Return package and core of a hardware thread; one that says nothing is a core by itself."""
    topology = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "unknown", str(cpu)
