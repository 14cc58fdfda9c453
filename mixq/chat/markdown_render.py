"""Blocks of Markdown, drawn as lines of a terminal.

Contract: `Renderer.lines` returns the lines of one block, each at most `width` cells wide and complete in itself (its
colours begin and end in it), without a line feed. The text is harmless already (`safe_text`); links are written out,
never made into terminal links, whose target would be hidden. Code stands at the margin, so that it can be copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from markdown_it.tree import SyntaxTreeNode
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from mixq.chat.markdown_blocks import Block, parser

MAX_HIGHLIGHTED = 20_000
"""Characters of a code block that are coloured: beyond, a redraw would take longer than a token."""

_PAD = re.compile(r"[ \t]+$")
_INLINE = {"strong": Style(bold=True), "em": Style(italic=True), "s": Style(strike=True)}
_CODE = Style(color="cyan")
_LINK = Style(underline=True)
_DIM = Style(dim=True)


class Renderer:
    """Draws blocks for one console.

    Args:
        console: whose colours are used; nothing is written to it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def lines(self, block: Block, width: int) -> list[str]:
        """Return the lines of a block, an empty one before it where it needs to stand apart."""
        tree = SyntaxTreeNode(parser().parse(block.source))
        drawn = self.draw(_Blocks(block.number).render(tree.children), width)
        return ["", *drawn] if block.follows == "block" else drawn

    def draw(self, renderable: RenderableType, width: int) -> list[str]:
        """Return the lines of anything that rich can draw."""
        with self._console.capture() as captured:
            self._console.print(renderable, width=max(width, 4), end="", overflow="fold")
        text = captured.get().removesuffix("\n")
        return [_PAD.sub("", line) for line in text.split("\n")] if text else []


class _Blocks:
    """Turns a syntax tree into what rich draws.

    Args:
        number: of the first item of the first list, where that is known better than the text says.
    """

    _BULLETS: ClassVar[Sequence[str]] = ("•", "◦", "▪")

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._depth = 0

    def render(self, nodes: Sequence[SyntaxTreeNode]) -> Group:
        parts: list[RenderableType] = []
        for node in nodes:
            loose = parts and node.type not in ("bullet_list", "ordered_list")
            if loose:
                parts.append(Text())
            parts.append(self._block(node))
        return Group(*parts)

    def _block(self, node: SyntaxTreeNode) -> RenderableType:
        if node.type == "paragraph":
            return _inline(node)
        if node.type == "heading":
            return _inline(
                node, Style(bold=True, underline=node.tag == "h1", italic=node.tag not in ("h1", "h2", "h3"))
            )
        if node.type in ("fence", "code_block"):
            return _code(node)
        if node.type in ("bullet_list", "ordered_list"):
            return Group(*self._items(node))
        if node.type == "blockquote":
            return _Hanging("│ ", "│ ", self.render(node.children), _DIM)
        if node.type == "hr":
            return Rule(style=_DIM)
        if node.type == "table":
            return _table(node)
        return Text(node.content if not node.children else "")  # no such node with this parser's rules

    def _items(self, node: SyntaxTreeNode) -> Iterator[RenderableType]:
        number, self._number = self._number, None
        if number is None and node.type == "ordered_list":
            number = int(node.attrs.get("start", 1))
        for item in node.children:
            if node.type == "ordered_list":
                # Room for two digits from the first item on, so that the tenth moves none that have been printed.
                mark = f"{number}. ".rjust(4)
                number = (number or 0) + 1
            else:
                mark = f"{self._BULLETS[self._depth % len(self._BULLETS)]} ".rjust(4 if self._depth else 3)
            self._depth += 1
            yield _Hanging(mark, " " * len(mark), self.render(item.children), Style(bold=True))
            self._depth -= 1


class _Hanging:
    """Something with a mark in front of its first line, and another in front of the others."""

    def __init__(self, first: str, others: str, body: RenderableType, style: Style) -> None:
        self._marks = (Segment(first, style), Segment(others, style))
        self._width = len(first)
        self._body = body

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = options.update(width=max(options.max_width - self._width, 1), height=None)
        lines = console.render_lines(self._body, inner, pad=False) or [[]]
        for number, line in enumerate(lines):
            yield self._marks[number > 0]
            yield from line
            yield Segment.line()


def _inline(node: SyntaxTreeNode, style: Style | None = None) -> Text:
    text = Text(style=style or "", overflow="fold")
    for child in node.children:  # the one "inline" node of a paragraph, heading or cell
        _append(text, child, Style())
    return text


def _append(text: Text, node: SyntaxTreeNode, style: Style) -> None:
    if node.type in ("softbreak", "hardbreak"):
        text.append("\n")
    elif node.type == "code_inline":
        text.append(node.content, style + _CODE)
    elif node.type == "link":
        _append_link(text, node, style)
    elif node.children:
        for child in node.children:
            _append(text, child, style + _INLINE.get(node.type, Style()))
    else:
        text.append(node.content, style)


def _append_link(text: Text, node: SyntaxTreeNode, style: Style) -> None:
    before = len(text)
    for child in node.children:
        _append(text, child, style + _LINK)
    target = str(node.attrs.get("href", ""))
    if target.removeprefix("mailto:") != text.plain[before:]:
        text.append(f" ({target})", style + _DIM)


def _code(node: SyntaxTreeNode) -> RenderableType:
    code = node.content.removesuffix("\n")
    language = node.info.split()[0] if node.type == "fence" and node.info.split() else ""
    body: RenderableType
    if language and len(code) <= MAX_HIGHLIGHTED:
        body = Syntax(code, language, theme="ansi_dark", background_color="default", word_wrap=True)
    else:
        body = Text(code, overflow="fold", tab_size=4)
    title = Text(language[:20], style=_DIM) if language else ""
    return Group(Rule(title, style=_DIM, align="left"), body, Rule(style=_DIM))


def _table(node: SyntaxTreeNode) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    rows = [row for part in node.children for row in part.children]
    for cell in rows[0].children:
        align = str(cell.attrs.get("style", "")).removeprefix("text-align:")
        table.add_column(
            _inline(cell),
            justify="right" if align == "right" else "center" if align == "center" else "left",
            overflow="fold",
        )
    for row in rows[1:]:
        table.add_row(*(_inline(cell) for cell in row.children))
    return table
