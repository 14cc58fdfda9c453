"""Turns on a quiet machine: waits until other programs are idle, and reports how much they ran after all.

Contract: reads Linux's /proc; elsewhere every moment counts as quiet. With one of two cores taken, thread pools that
meet at every layer lose far more than half of their speed, each in its own measure, so a ratio taken then says nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
QUIET = 0.06
"""Share of the CPUs' time that others may take in a quiet moment."""
TRIES = 3
_LOOK = 0.4  # seconds
_TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn measured."""

    figure: float  # seconds, or a rate
    others: float  # share of all CPUs' time that others took meanwhile


def quiet_turn(measure: Callable[[], float], process: int, patience: float, *, beside: Sequence[int] = ()) -> Turn:
    """Run `measure` when the machine is quiet; again if others came in between, and then take the quietest turn.

    Args:
        measure: returns the figure.
        process: id of the process that computes.
        patience: seconds to wait for quiet in all; when they are over it is measured as it is.
        beside: ids of processes that belong to the measurement and never sleep: they do not count as others.
    """
    turns: list[Turn] = []
    while len(turns) < TRIES and (patience > 0 or not turns):
        started = time.monotonic()
        wait_for_quiet(patience, beside)
        patience -= time.monotonic() - started
        busy, total, own = *_cpus(), _own(process, *beside)
        figure = measure()
        busy_then, total_then, own_then = *_cpus(), _own(process, *beside)
        others = max(0.0, (busy_then - busy) - (own_then - own)) / max(total_then - total, _TICK)
        turns.append(Turn(figure, others))
        if others <= QUIET:
            break
    return min(turns, key=lambda turn: turn.others)


def wait_for_quiet(patience: float, beside: Sequence[int] = ()) -> bool:
    """Wait until the CPUs are idle but for `beside`, at most `patience` seconds; return whether they are."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        busy, total, own = *_cpus(), _own(*beside)
        time.sleep(_LOOK)
        busy_then, total_then, own_then = *_cpus(), _own(*beside)
        if (busy_then - busy) - (own_then - own) <= QUIET * (total_then - total):
            return True
    return False


def _cpus() -> tuple[float, float]:
    """Return seconds that the CPUs were busy (or taken by the host), and in all."""
    if not STAT.exists():
        return 0.0, 0.0
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy * _TICK, (busy + idle + iowait) * _TICK


def _own(*processes: int) -> float:
    """Return seconds of CPU time of some processes."""
    return sum(_seconds(process) for process in processes)


def _seconds(process: int) -> float:
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK
