"""Compares the speed while running with the cost model.

Contract: receives the ratio of measured and expected seconds of each part; if the ratio is far from one, it returns a
changed cost model for the scheduler, and one line for the user. From then on, the part follows the measurements.
"""

from __future__ import annotations

from collections import deque

from mixq.experts.cost import CostModel

FACTOR = 1.5
"""Factor by which the average must differ: below it, decisions are the same."""

OBSERVATIONS = 64
"""Observations in a row: two tokens of 32 layers, so that a short pause changes nothing."""

SMOOTHING = 0.05
"""Weight of an observation in the running average."""

BOUND = 10.0
"""Larger observations are pauses of the computer, and are reduced to this factor."""

MOVED = 1.1
"""Factor by which a part must change again for another change of the cost model."""

_WORDS = {
    "cpu": "The CPU computes experts",
    "copy": "Experts are copied to the GPU",
}


class Drift:
    """Compares CPU and copies with a cost model."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._parts = {name: _Part() for name in _WORDS}
        self._lines: deque[str] = deque()

    def note(self, name: str, ratio: float) -> CostModel | None:
        """Take measured over expected seconds of `cpu` or `copy`; return the new cost model if it changes."""
        part = self._parts[name]
        followed = part.followed
        if not part.note(ratio):
            return None
        if followed is None:
            self._lines.append(
                f"{_WORDS[name]} in {part.average:.1f} times the time measured at the start; the scheduler now "
                "uses the new times."
            )
        return self._cost.slowed(**{name: part.followed or 1.0 for name, part in self._parts.items()})

    def notice(self) -> str | None:
        """Return the next line for the user, once."""
        return self._lines.popleft() if self._lines else None


class _Part:
    """A running average; `followed` is the ratio that decisions follow, None while they follow the cost model."""

    def __init__(self) -> None:
        self.average = 1.0
        self.followed: float | None = None
        self._off = 0

    def note(self, ratio: float) -> bool:
        """Return whether `followed` has changed."""
        self.average += SMOOTHING * (min(max(ratio, 1 / BOUND), BOUND) - self.average)
        if self.followed is None:
            self._off = self._off + 1 if not 1 / FACTOR < self.average < FACTOR else 0
            if self._off < OBSERVATIONS:
                return False
        elif 1 / MOVED < self.average / self.followed < MOVED:
            return False
        self.followed = self.average
        return True
