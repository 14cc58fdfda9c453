"""How much of the processors other programs use: what was measured meanwhile is too slow.

Contract: reads Linux's /proc/stat; elsewhere, and over times too short for its clock, the share is unknown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DISTURBED = 0.2
"""Share of the processors above which a measurement is marked."""

_STAT = Path("/proc/stat")
_SHORTEST = 0.1  # seconds; the system counts in hundredths
_LOOK = 0.3  # seconds


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds up to now: of the clock, of all busy processors (None if unknown), and of this process."""

    wall: float
    busy: float | None
    own: float

    @classmethod
    def now(cls) -> Work:
        """Return the seconds up to now."""
        return cls(time.perf_counter(), _busy(), time.process_time())

    def of_others(self, earlier: Work) -> float | None:
        """Return the share of the processors that other programs have used since `earlier`, 0 to 1; None if unknown."""
        wall = self.wall - earlier.wall
        if self.busy is None or earlier.busy is None or wall < _SHORTEST:
            return None
        others = self.busy - earlier.busy - (self.own - earlier.own)
        return min(max(others / (wall * (os.cpu_count() or 1)), 0.0), 1.0)


def is_disturbed(load: float | None) -> bool:
    """Whether a measurement needs a mark, by the share of the processors that other programs used meanwhile."""
    return load is not None and load > DISTURBED


def marks(loads: Iterable[tuple[str, float | None]]) -> list[str]:
    """Return a line for each test that other programs disturbed, from the tests' names and loads."""
    return [
        f"{test} was measured while other programs used {load:.0%} of the processor, so it may be faster."
        for test, load in loads
        if load is not None and is_disturbed(load)
    ]


def current_load() -> float | None:
    """Return the share of the processors that other programs use now, after a moment of watching; None if unknown."""
    before = Work.now()
    time.sleep(_LOOK)
    return Work.now().of_others(before)


def _busy() -> float | None:
    try:
        name, *spent = _STAT.read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, *more = (int(ticks) for ticks in spent)
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(more[:3])) / os.sysconf("SC_CLK_TCK") if name == "cpu" else None
