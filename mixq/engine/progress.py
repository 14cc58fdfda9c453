"""How far the loading of a model is, told to whoever waits for it.

Contract: a `Progress` is called with what is being done and the share of it that is done. `TextProgress` writes one
line over itself, as a terminal and a notebook both show it, and nothing at all where loading is quick.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from mixq.errors import UsageError, printable

Progress = Callable[[str, float], None]
"""(what, share): `share` is 0 to 1 of this part of the work."""

PATIENCE = 1.0
"""Seconds of loading during which nothing is said."""

EVERY = 0.2
"""Seconds between two lines."""


def choose_progress(wanted: bool | Progress | None, where: str) -> Progress:
    """Return who is told.

    Args:
        wanted: a function, True for a line of text, False for nobody; None for the line in a notebook alone.
        where: the model's name.
    """
    if wanted is None:
        wanted = in_notebook()
    if isinstance(wanted, bool):
        return TextProgress(where, patience=PATIENCE) if wanted else lambda what, share: None
    if not callable(wanted):
        raise UsageError(f"progress is {printable(repr(wanted))}; it must be True, False or a function.")
    return wanted


def in_notebook() -> bool:
    """Return whether this is a notebook's process."""
    return "ipykernel" in sys.modules


class TextProgress:
    """One line on stderr.

    Args:
        where: the model's name.
        patience: seconds from now before the first line.
    """

    def __init__(self, where: str, *, patience: float = 0.0, out: TextIO | None = None) -> None:
        self._where = printable(where)
        self._next = time.monotonic() + patience
        self._out = out
        self._width = 0

    def __call__(self, what: str, share: float) -> None:
        """See `Progress`; the line ends when all is done, which is a share of 1 of nothing in particular ("")."""
        if not what:
            if self._width:
                self._write("loaded", "\n")
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY
            self._write(f"{what} {share:.0%}", "")

    def _write(self, text: str, end: str) -> None:
        out = sys.stderr if self._out is None else self._out
        line = f"{self._where}: {text}"
        print("\r" + line.ljust(self._width), end=end, file=out, flush=True)
        self._width = len(line)
