"""Markdown as it comes: which blocks are finished, and what is still open.

Contract: `BlockSplitter` cuts a text that arrives in pieces into top-level blocks, where each item of a top-level list
is a block of its own. A block that has been given is never changed by what follows, and the blocks are the same however
the text was cut into pieces. HTML, images and link references are not Markdown here: a reader of a terminal should see
them as they were written, and a reference could change a block that has long been printed. No terminal, no rich.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
Follows = Literal["nothing", "item", "block"]

_LISTS = ("bullet_list_open", "ordered_list_open")
_ONLY_MARKERS = re.compile(r"[ \t]*(?:[-=*_+#>`~|:. \t]+|\d{1,9}[.)]?[ \t]*)")


@lru_cache(maxsize=1)
def parser() -> MarkdownIt:
    """Return the parser of everything a model writes. Lines of a paragraph keep their indentation: it may be code."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": 12})
    return markdown.enable(["table", "strikethrough"]).disable(
        ["reference", "html_block", "html_inline", "image", "newline"]
    )


@lru_cache(maxsize=1)
def _block_parser() -> MarkdownIt:
    """Return a parser that finds blocks alone: what stands in a line takes most of the time."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": 12})
    markdown.enable("table").disable(["reference", "html_block"])
    markdown.core.ruler.disable("inline")
    return markdown


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of Markdown that is drawn by itself.

    Attributes:
        source: its lines.
        number: of an item of a numbered list; None elsewhere.
        follows: what stands before it: nothing, another item of the same list, or something else.
    """

    source: str
    number: int | None = None
    follows: Follows = "nothing"


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a block begins: line, number and what it follows."""

    line: int
    number: int | None
    follows: Follows


class BlockSplitter:
    """Takes text, gives blocks."""

    def __init__(self) -> None:
        self._open = ""
        self._first: _Start | None = None  # how the open text begins, where that was found out with the block before

    def push(self, text: str) -> list[Block]:
        """Take more text and return the blocks that are finished by it."""
        self._open += text
        end = self._open.rfind("\n") + 1
        if "\n" not in text:
            return []  # nothing is certain before the end of a line
        return self._take(self._open[:end], self._open[end:])

    def finish(self) -> list[Block]:
        """Return the rest, when no more text will come."""
        rest = self._blocks(self._open)
        self._open = ""
        return rest

    @property
    def open_blocks(self) -> list[Block]:
        """What is still open, as it would be drawn now: most often one block, or none.

        A last line of nothing but markers is left out: what `-` or three backticks become, the next character says.
        """
        head, newline, last = self._open.rpartition("\n")
        shown = head + newline if _ONLY_MARKERS.fullmatch(last) else self._open
        return self._blocks(shown)

    def _take(self, complete: str, incomplete: str) -> list[Block]:
        starts = self._starts(complete)
        if len(starts) < 2:
            return []
        lines = _lines(complete)
        blocks = _cut(lines, starts)
        self._first = starts[-1]
        self._open = "".join(lines[starts[-1].line :]) + incomplete
        return blocks[:-1]

    def _blocks(self, text: str) -> list[Block]:
        return _cut(_lines(text), self._starts(text))

    def _starts(self, text: str) -> list[_Start]:
        """Return where the blocks of `text` begin; the first is as it was when it stood behind its predecessor."""
        found: list[_Start] = []
        number: int | None = None
        follows: Follows
        first_of_list = True
        for token in _block_parser().parse(text):
            if token.map is None:
                continue
            line = token.map[0]
            if token.level == 0 and token.type in _LISTS:
                ordered = token.type == "ordered_list_open"
                number = int(token.attrs.get("start", 1)) if ordered else None
                first_of_list = True
            elif token.level == 1 and token.type == "list_item_open":
                if not found and self._first is not None:
                    found.append(_Start(line, self._first.number, self._first.follows))
                    number = self._first.number
                else:
                    follows = "item" if not first_of_list else _behind(found)
                    found.append(_Start(line, number, follows))
                first_of_list = False
                number = None if number is None else number + 1
            elif token.level == 0 and token.nesting >= 0:
                follows = self._first.follows if not found and self._first is not None else _behind(found)
                found.append(_Start(line, None, follows))
        return found


def _behind(found: Sequence[_Start]) -> Follows:
    return "block" if found else "nothing"


def _lines(text: str) -> list[str]:
    """Return the lines as the parser counts them: str.splitlines knows many more ends."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _cut(lines: Sequence[str], starts: Sequence[_Start]) -> list[Block]:
    ends = [*(start.line for start in starts[1:]), len(lines)]
    return [
        Block("".join(lines[start.line : end]).rstrip("\n"), start.number, start.follows)
        for start, end in zip(starts, ends, strict=False)
    ]
