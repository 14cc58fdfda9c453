"""Shows a reply on the screen while it arrives.

Contract: a stream receives text (`push`) and is finished once (`finish`); it writes to one terminal or file.
`MarkdownStream` draws Markdown: finished blocks are printed once, the open one is redrawn. `PlainStream` writes plain
text: exact to a file or pipe, without control characters to a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from mixq.chat.live_region import LiveRegion, Size
from mixq.chat.markdown_blocks import BlockSplitter
from mixq.chat.markdown_render import Renderer
from mixq.chat.safe_text import harmless

WIDEST = 110
"""Most cells of a line: longer lines are hard to read."""

FRAME_SECONDS = 1 / 30
DRAWING_SHARE = 0.2
"""Share of the time that drawing may take: a long open block is drawn less often."""


class MarkdownStream:
    """Draws Markdown while it arrives.

    Args:
        region: of the terminal.
        renderer: draws blocks.
        size: returns the terminal's columns and rows.
        clock: seconds.
    """

    def __init__(
        self,
        region: LiveRegion,
        renderer: Renderer,
        size: Callable[[], Size],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._renderer = renderer
        self._size = size
        self._clock = clock
        self._splitter = BlockSplitter()
        self._finished: list[str] = []
        self._next_frame = 0.0

    def push(self, text: str) -> None:
        """Add text; draw it if the last frame is old enough."""
        width = self._width()
        for block in self._splitter.push(harmless(text)):
            self._finished += self._renderer.lines(block, width)
        began = self._clock()
        if began >= self._next_frame:
            self._draw(width)
            now = self._clock()
            self._next_frame = now + max(FRAME_SECONDS, (now - began) / DRAWING_SHARE)

    def finish(self) -> None:
        """Print the rest."""
        width = self._width()
        for block in self._splitter.finish():
            self._finished += self._renderer.lines(block, width)
        self._draw(width)
        self._region.close()

    def _draw(self, width: int) -> None:
        live = [line for block in self._splitter.open_blocks for line in self._renderer.lines(block, width)]
        self._region.update(self._finished, live)
        self._finished = []

    def _width(self) -> int:
        return min(self._size()[0] - 1, WIDEST)


class PlainStream:
    """Writes plain text.

    Args:
        file: text stream; control characters are escaped if it is a terminal.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stdout if file is None else file
        self._ends_line = True

    def push(self, text: str) -> None:
        """Write it at once."""
        if text:
            self._file.write(harmless(text) if self._file.isatty() else text)
            self._file.flush()
            self._ends_line = text.endswith("\n")

    def finish(self) -> None:
        """End the line."""
        if not self._ends_line:
            self._file.write("\n")
            self._file.flush()
