"""Splits arriving Markdown into blocks, finished and open.

Contract: `BlockSplitter` cuts a text that arrives in pieces into top-level blocks, where each item of a top-level list
is a block of its own. Later text never changes a block that has been returned, and the blocks are the same however the
text was cut into pieces. HTML, images and link references are treated as text: on a terminal they should appear as
they were written, and a reference could change a block that was printed long before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

Follows = Literal["nothing", "item", "block"]

_LISTS = ("bullet_list_open", "ordered_list_open")
_ONLY_MARKERS = re.compile(r"[ \t]*(?:[-=*_+#>`~|:. \t]+|\d{1,9}[.)]?[ \t]*)")


@lru_cache(maxsize=1)
def parser() -> MarkdownIt:
    """Return the parser of everything a model writes. Lines of a paragraph keep their indentation: it may be code."""
    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": 12}).enable(["table", "strikethrough"])
    markdown.disable(["reference", "html_block", "html_inline", "image", "newline"])
    markdown.core.ruler.push("plain_autolinks", _plain_autolinks)
    return markdown


def _plain_autolinks(state: StateCore) -> None:
    """Make <https://example.org> plain text: it already shows its address."""
    for token in state.tokens:
        token.children = [child for child in token.children or () if child.markup != "autolink"]


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of Markdown that is drawn separately."""

    source: str  # its lines
    number: int | None = None  # of an item of a numbered list; None elsewhere
    follows: Follows = "nothing"  # what comes before it: nothing, another item of the same list, or another block


class _Start(NamedTuple):
    """Where a block begins: its line, the number of an item, and what it follows."""

    line: int
    number: int | None
    follows: Follows


class BlockSplitter:
    """Splits text into blocks."""

    def __init__(self) -> None:
        self._open = ""
        self._first: _Start | None = None  # of the open text, if it was found with the block before

    def push(self, text: str) -> list[Block]:
        """Add text and return the blocks that it completes."""
        self._open += text
        if "\n" not in text:
            return []  # nothing is certain before the end of a line
        end = self._open.rfind("\n") + 1
        lines = _lines(self._open[:end])
        starts = self._starts(self._open[:end])
        if len(starts) < 2:
            return []
        self._first = starts[-1]
        self._open = "".join(lines[starts[-1].line :]) + self._open[end:]
        return _cut(lines, starts)[:-1]

    def finish(self) -> list[Block]:
        """Return the rest, when no more text will come."""
        rest = self._blocks(self._open)
        self._open = ""
        return rest

    @property
    def open_blocks(self) -> list[Block]:
        """The blocks that are still open, usually one or none.

        A last line of markers alone is left out: the next character decides what `-` or three backticks become.
        """
        head, newline, last = self._open.rpartition("\n")
        shown = head + newline if _ONLY_MARKERS.fullmatch(last) else self._open
        return self._blocks(shown)

    def _blocks(self, text: str) -> list[Block]:
        return _cut(_lines(text), self._starts(text))

    def _starts(self, text: str) -> list[_Start]:
        """Return where the blocks of `text` begin; number and predecessor of the first are known from before."""
        tokens: list[Token] = []
        parser().block.parse(text, parser(), {}, tokens)  # blocks alone: their text takes most of the time
        found: list[_Start] = []
        number: int | None = None
        in_list = False
        for token in tokens:
            is_item = token.level == 1 and token.type == "list_item_open"
            if token.level == 0 and token.type in _LISTS:
                number = int(token.attrs.get("start", 1)) if token.tag == "ol" else None
                in_list = False
            elif token.map is not None and (is_item or (token.level == 0 and token.nesting >= 0)):
                follows: Follows = "item" if is_item and in_list else "block" if found else "nothing"
                start = _Start(token.map[0], number if is_item else None, follows)
                if not found and self._first is not None:
                    start = self._first._replace(line=start.line)
                found.append(start)
                in_list = True
                number = None if start.number is None else start.number + 1
        return found


def _lines(text: str) -> list[str]:
    """Return the lines as the parser counts them: str.splitlines knows many more ends."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _cut(lines: Sequence[str], starts: Sequence[_Start]) -> list[Block]:
    ends = [*(start.line for start in starts[1:]), len(lines)]
    return [
        Block("".join(lines[start.line : end]).rstrip("\n"), start.number, start.follows)
        for start, end in zip(starts, ends, strict=False)
    ]
