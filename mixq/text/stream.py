"""Ends a generated text at the first stop string.

Contract: `StopMatcher` returns the text before the first stop string, never a part of a stop string, however the text
is split into pushes.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixq.errors import UsageError


class StopMatcher:
    """Cuts a stream of text at the first stop string.

    The first is the one that is complete first; of several complete at the same place, the longest. So the result does
    not depend on how the text is split into pushes.

    Args:
        stops: the strings; without any, nothing stops and nothing is held back.

    Raises:
        UsageError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise UsageError("A stop string is empty; it would stop every reply at once.")
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return the text that can be shown, and whether a stop string was found.

        After a stop string was found, further text is dropped.
        """
        if self.matched is not None:
            return "", True
        seen = self._held + text
        found = self._first_match(seen)
        if found is not None:
            start, self.matched = found
            self._held = ""
            return seen[:start], True
        kept = self._longest_possible_start(seen)
        self._held = seen[len(seen) - kept :]
        return seen[: len(seen) - kept], False

    def flush(self) -> str:
        """Return the held-back text at the end."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if not matches:
            return None
        end, _, stop = min(matches)
        return end - len(stop), stop

    def _longest_possible_start(self, text: str) -> int:
        """Return the length of the longest end of `text` that is the start of a stop string."""
        starts = (stop[:length] for stop in self._stops for length in range(1, min(len(stop), len(text) + 1)))
        return max((len(start) for start in starts if text.endswith(start)), default=0)
