"""The number of physical cores that this process may use, within its affinity and CPU quota.

Contract: reads the operating system's information, without measuring. Two hardware threads of a core share its load and
store units, so the second adds nothing to a kernel that waits for memory.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from mixq.system.memory import control_groups, smallest, text_of

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CPU_INFO = Path("/proc/cpuinfo")


def physical_cores() -> int:
    """Return the physical cores of this process's affinity, at least 1; a container's CPU quota lowers the number."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, os.cpu_count() or 1)
    cores = len({_core(cpu) for cpu in os.sched_getaffinity(0)})
    quota = cpu_limit()
    return max(1, cores if quota is None else min(cores, int(quota)))


def cpu_facts() -> dict[str, str]:
    """Return what Linux says about the first processor ("model name", "flags", ...); empty elsewhere."""
    facts: dict[str, str] = {}
    for line in text_of(_CPU_INFO).splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_limit() -> float | None:
    """Return how many CPUs the processes of this control group may use; None without a limit."""
    return smallest(_cpus(group) for group in control_groups())


def _core(cpu: int) -> tuple[str, str]:
    """Return package and core of a hardware thread; without topology each thread counts as a core."""
    topology = _TOPOLOGY / f"cpu{cpu}" / "topology"
    core = text_of(topology / "core_id")
    return (text_of(topology / "physical_package_id"), core) if core else ("unknown", str(cpu))


def _cpus(group: Path) -> float | None:
    quota, _, period = text_of(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None
