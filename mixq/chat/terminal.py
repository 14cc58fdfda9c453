"""The terminal of a chat: messages, replies, progress, Ctrl-C.

Contract: replies go to standard output, everything else to standard error. While a reply arrives, typed text is not
shown (it would appear inside the reply) but kept for the next prompt, and Ctrl-C sets an event instead of ending the
program. Nothing here needs POSIX.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixq.chat.live_region import LiveRegion, Size
from mixq.chat.markdown_render import Renderer
from mixq.chat.markdown_stream import MarkdownStream, PlainStream
from mixq.errors import MixqError, UsageError, printable

PATIENCE = 3
"""After this many Ctrl-C in one reply it is abandoned: the model has not reacted to the event."""

BAR = 24  # cells


class Terminal:
    """The terminal of one chat.

    Args:
        plain: write replies as plain text, not as Markdown.
    """

    def __init__(self, *, plain: bool = False) -> None:
        self._out = Console(highlight=False, markup=False)
        self._talk = Console(stderr=True, highlight=False, markup=False)
        self.draws = not plain and _can_draw(self._out)
        self.unicode = (self._talk.encoding or "").lower().startswith("utf")

    def say(self, text: str | Text = "", style: str = "") -> None:
        """Print a line."""
        self._talk.print(text, style=style, soft_wrap=not self._talk.is_terminal)

    def note(self, text: str) -> None:
        """Print a dim line."""
        self.say(text, "dim")

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.say(Text.assemble(("Warning: ", "bold yellow"), text))

    def error(self, error: MixqError) -> None:
        """Print an error and its hint."""
        self.say(Text.assemble(("Error: ", "bold red"), error.message))
        if error.hint:
            self.say(error.hint)

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print labels and their texts side by side, or one below the other where the window is narrow."""
        widest = max((cell_len(label) for label, _ in rows), default=0)
        if self.size()[0] < 2 * widest:
            for label, text in rows:
                self.say(label, "bold")
                self.say(f"  {text}")
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(overflow="fold")
        for label, text in rows:
            grid.add_row(Text(label), Text(text))
        self._talk.print(grid)

    def size(self) -> Size:
        """Return the current columns and rows."""
        return window_size()

    def stream(self, *, markdown: bool) -> MarkdownStream | PlainStream:
        """Return the stream of the next reply."""
        if markdown and self.draws:
            return MarkdownStream(LiveRegion(_writer(sys.stdout), self.size), Renderer(self._out), self.size)
        return PlainStream()

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Provide a function that shows how many of all tokens have run; the line is erased at the end."""
        if not _can_draw(self._talk):
            yield lambda _done, _total: None
            return
        region = LiveRegion(_writer(sys.stderr), self.size)

        def update(done: int, total: int) -> None:
            if done < total:
                region.update([], [progress_line(label, done, total, self.size()[0] - 1, unicode=self.unicode)])
            else:
                region.close()

        try:
            yield update
        finally:
            region.close()

    @contextmanager
    def replying(self) -> Iterator[threading.Event]:
        """Provide the event that Ctrl-C sets; text typed meanwhile is hidden and kept for the next prompt."""
        cancel = threading.Event()
        presses = 0

        def handle(_signal: int, _frame: FrameType | None) -> None:
            nonlocal presses
            presses += 1
            cancel.set()
            if presses >= PATIENCE:
                raise KeyboardInterrupt

        previous = signal.signal(signal.SIGINT, handle)
        try:
            with _without_echo():
                yield cancel
        finally:
            signal.signal(signal.SIGINT, previous)


def window_size() -> Size:
    """Return the window's current columns and rows; $COLUMNS may be out of date after it was resized."""
    for descriptor in (1, 2, 0):
        with contextlib.suppress(OSError, ValueError):
            columns, rows = os.get_terminal_size(descriptor)
            if columns and rows:
                return max(columns, 2), max(rows, 2)
    return 80, 24


def progress_line(label: str, done: int, total: int, width: int, *, unicode: bool = True) -> str:
    """Return a bar and its numbers in at most `width` cells."""
    figures = f"{label} {done:,} of {total:,} tokens"
    room = min(width - len(figures) - 1, BAR)
    if room < 4:
        return f"{done:,}/{total:,}"[:width]
    full = room * done // max(total, 1)
    bar = "━" * full + "─" * (room - full) if unicode else "#" * full + "." * (room - full)
    return f"{figures} {bar}"


def edited_in_editor(text: str) -> str | None:
    """Return `text` as the user's editor left it; None where no editor is set.

    Raises:
        UsageError: the editor cannot be started, or failed.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        return None
    words = shlex.split(editor, posix=os.name != "nt")
    handle, name = tempfile.mkstemp(suffix=".md", prefix="mixq-")  # readable by its owner alone
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        try:
            code = subprocess.run([*words, name], check=False).returncode
            changed = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The editor {printable(editor)} could not be started: {printable(error)}.") from error
        if code:
            raise UsageError(f"The editor {printable(editor)} ended with exit code {code}; nothing was changed.")
        return changed.rstrip("\n")
    finally:
        Path(name).unlink(missing_ok=True)


def _can_draw(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and not console.legacy_windows


def _writer(file: TextIO) -> Callable[[str], None]:
    def write(text: str) -> None:
        file.write(text)
        file.flush()

    return write


@contextmanager
def _without_echo() -> Iterator[None]:
    """Hide typed characters. (Windows shows them only while a program reads.)"""
    if os.name == "nt" or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] = (silent[3] & ~termios.ECHO) | termios.NOFLSH  # Ctrl-C does not discard what was typed
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
