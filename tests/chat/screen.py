"""A small terminal for tests: what `mixq.chat.live_region` sends, seen as a screen with what has scrolled away."""

from __future__ import annotations

import re

from rich.cells import cell_len

_TOKEN = re.compile(r"\x1b\[(\??)([0-9;:]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")


class Screen:
    """Rows of text; every sequence that it does not know is an error.

    Attributes:
        scrolled: rows that have left at the top, oldest first.
        written: characters that were drawn, in all.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns, self.height = columns, rows
        self.rows: list[list[str]] = [[] for _ in range(rows)]
        self.scrolled: list[str] = []
        self.row = self.column = 0
        self.wraps = True
        self.cursor_shown = True
        self.written = 0
        self.sizes: list[tuple[int, int]] = []

    def size(self) -> tuple[int, int]:
        """Return columns and rows; before that, one after the other, what `sizes` says."""
        return self.sizes.pop(0) if self.sizes else (self.columns, self.height)

    def write(self, text: str) -> None:
        position = 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            assert found, f"the terminal does not know {text[position : position + 10]!r}"
            position = found.end()
            if found[3]:
                self._obey(found[1], found[2], found[3])
            elif found[0] == "\r":
                self.column = 0
            elif found[0] == "\n":
                self._down()
            else:
                self._put(found[0])

    def _obey(self, private: str, arguments: str, command: str) -> None:
        if private:
            assert (arguments, command) in [(n, c) for n in ("7", "25", "2026") for c in "hl"]
            if arguments == "7":
                self.wraps = command == "h"
            elif arguments == "25":
                self.cursor_shown = command == "h"
        elif command == "A":
            self.row = max(0, self.row - int(arguments or 1))
        elif command == "B":
            self.row = min(self.height - 1, self.row + int(arguments or 1))
        elif command == "J":
            assert not arguments
            self.rows[self.row] = self.rows[self.row][: self.column]
            for row in range(self.row + 1, self.height):
                self.rows[row] = []
        elif command == "K":
            assert arguments == "2"
            self.rows[self.row] = []
        else:
            assert command == "m", f"the terminal does not know {command}"

    def _put(self, character: str) -> None:
        width = cell_len(character)
        if self.column + width > self.columns:
            if not self.wraps:
                return
            self.column = 0
            self._down()
        row = self.rows[self.row]
        row += [" "] * (self.column - len(row))
        row[self.column : self.column + width] = [character, *[""] * (width - 1)]
        self.column += width
        self.written += 1

    def _down(self) -> None:
        if self.row == self.height - 1:
            self.scrolled.append("".join(self.rows.pop(0)).rstrip())
            self.rows.append([])
        else:
            self.row += 1

    @property
    def lines(self) -> list[str]:
        """Everything that was ever printed and not erased, without empty rows at the end."""
        lines = [*self.scrolled, *("".join(row).rstrip() for row in self.rows)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def reflow(self, columns: int) -> None:
        """Make the window narrower, as most terminals do: rows that no longer fit are broken."""
        texts = ["".join(row).rstrip() for row in self.rows[: self.row + 1]]
        broken = [text[a : a + columns] for text in texts for a in range(0, max(len(text), 1), columns)]
        self.columns = columns
        self.scrolled += broken[: max(0, len(broken) - self.height)]
        kept = broken[-self.height :]
        self.rows = [list(text) for text in kept] + [[] for _ in range(self.height - len(kept))]
        self.row, self.column = len(kept) - 1, len(kept[-1])
