"""The last lines of a terminal, which may still change.

Contract: `LiveRegion.update` prints finished lines, which scroll away with the terminal, and draws the lines that may
change below them. Only lines that differ from those on the screen are written, in one write,
so that nothing flickers. The region is never taller than the screen, because what has scrolled away cannot be drawn
again: of more lines, the last are shown until they are finished. The cursor is hidden until `close`, and waits at the
end of the last line. Lines are as `markdown_render` gives them.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence

from rich.cells import cell_len

Size = tuple[int, int]
"""Columns and rows."""

SETTLE_SECONDS = 0.3
"""While a window is resized, the size is out of date: tmux updates it every quarter of a second."""

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_BEGIN = "\x1b[?2026h"  # synchronized update: terminals that support it show the frame at once, others ignore it
_END = "\x1b[?2026l"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # a line that is wider on the terminal than computed must not take two rows


class LiveRegion:
    """The live lines of one terminal.

    Args:
        write: sends text to the terminal, at once.
        size: returns the terminal's columns and rows.
        wait: sleeps for a number of seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        size: Callable[[], Size],
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._write = write
        self._size = size
        self._wait = wait
        self._lines: list[str] = []  # as they are on the screen
        self._columns = 0
        self._hidden = False

    def update(self, finished: Sequence[str], live: Sequence[str]) -> None:
        """Print `finished`, and draw `live` below in place of what was live."""
        columns, rows = self._settled_size()
        live = list(live)[-max(rows - 1, 1) :]
        if not (finished or live or self._lines):
            return
        lines = [*finished, *live] if live else [*finished, ""]  # the cursor has a line to itself
        frame = [_BEGIN, "" if self._hidden else _HIDE]
        old = self._lines
        if old and columns != self._columns:
            taken = _rows_after_resize(old, columns, rows)
            # Row by row: tmux puts into its history what is erased as a whole screen.
            frame += [_up(taken - 1), "\r", "\x1b[1B".join(["\x1b[2K"] * taken), _up(taken - 1)]
            old = []
        frame.append(self._draw(old, lines, len(finished)))
        self._lines = live
        self._columns = columns
        self._hidden = True
        self._write("".join([*frame, _END]))

    def close(self) -> None:
        """Erase what is live, and show the cursor again."""
        self.update([], [])
        if self._hidden:
            self._hidden = False
            self._write(_SHOW)

    def _settled_size(self) -> Size:
        """Return the window's size, once it stays as it is."""
        size = self._size()
        while self._lines and size[0] != self._columns:
            self._wait(SETTLE_SECONDS)
            now = self._size()
            if now == size:
                break
            size = now
        return size

    @staticmethod
    def _draw(old: Sequence[str], new: Sequence[str], finished: int) -> str:
        """Return what turns the lines `old`, the cursor in the last of them, into `new`."""
        same = 0
        while same < min(len(old), len(new)) and old[same] == new[same]:
            same += 1
        if same == len(old) == len(new):
            return ""
        row = len(old) - 1 if old else 0  # where the cursor is, counted from the first old line
        first = min(same, len(new) - 1)
        parts = []
        if same == len(old) and old:
            parts.append("\r\n" * (first - row))
        else:
            parts.append(_up(row - first))
        for number in range(first, len(new)):
            last = number == len(new) - 1
            if number >= len(old) or old[number] != new[number]:
                wrap = _WRAP if number < finished else _NO_WRAP
                parts += ["\r\x1b[2K" if number < len(old) else "\r", wrap, new[number]]
            elif last:  # it is on the screen already: move to its end
                parts += ["\r", _NO_WRAP, new[number]]
            if not last:
                parts.append("\r\n")
        if len(old) > len(new):
            parts.append("\x1b[J")
        return "".join([*parts, _WRAP])


def _up(rows: int) -> str:
    return f"\x1b[{rows}A" if rows > 0 else ""


def _rows_after_resize(lines: Sequence[str], columns: int, rows: int) -> int:
    """Return how many rows the lines take after the terminal has broken those that no longer fit."""
    taken = sum(max(1, math.ceil(cell_len(_COLOUR.sub("", line)) / max(columns, 1))) for line in lines)
    return min(taken, rows)
