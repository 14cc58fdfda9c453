"""Progress of loading a model.

Contract: a `Progress` is called with the kind of work and the share of it that is done. `TextProgress` rewrites one
line, in terminals and notebooks, and writes nothing if loading is quick.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from mixq.errors import UsageError, printable

Progress = Callable[[str, float], None]
"""(what, share): `share` is 0 to 1 of this part of the work. `what` is empty at the end: `share` is 1 if the model is
loaded, 0 if loading has failed."""

PATIENCE = 1.0
"""Seconds of loading before the first line."""

EVERY = 0.2
"""Seconds between two lines."""


def choose_progress(wanted: bool | Progress | None, where: str) -> Progress:
    """Return the function to call.

    Args:
        wanted: a function, True for a line of text, False for nothing; None for the line in a notebook only.
        where: the model's name.
    """
    if wanted is None:
        wanted = "ipykernel" in sys.modules  # a notebook's process
    if isinstance(wanted, bool):
        return TextProgress(where, patience=PATIENCE) if wanted else lambda what, share: None
    if not callable(wanted):
        raise UsageError(f"progress is {printable(repr(wanted))}; it must be True, False or a function.")
    return wanted


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
        """Write the line if the last one is old enough; end it when loading ends."""
        if not what:
            if self._width:
                self._write("loaded" if share else "not loaded", "\n")
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
