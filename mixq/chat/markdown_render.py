"""Draws blocks of Markdown as terminal lines, with rich.

Contract: `Renderer.lines` returns the lines of one block, each at most `width` cells wide and complete in itself (its
colours begin and end in it), without a line feed. The text has passed `safe_text`. Differences from rich's
style: links show their address instead of being terminal links, whose target is hidden; code starts at the margin, so
that it can be copied; list numbers have room for two digits from the first item on, because the tenth item cannot move
lines that have been printed.
"""

from __future__ import annotations

import re
from typing import ClassVar

from rich import box, markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.containers import Renderables
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from mixq.chat.markdown_blocks import Block, parser

MAX_HIGHLIGHTED = 20_000
"""Characters of a code block that are coloured: beyond, a redraw would take longer than a token."""

_PAD = re.compile(r"[ \t]+$")
_BOLD, _DIM = Style(bold=True), Style(dim=True)
_THEME = Theme(
    {f"markdown.h{level}": Style(bold=True, underline=level == 1, italic=level > 3) for level in range(1, 7)}
    | {"markdown.code": Style(color="cyan"), "markdown.code_block": Style(), "markdown.block_quote": Style()}
    | {"markdown.link": Style(underline=True), "markdown.link_url": _DIM}
)


class Renderer:
    """Draws blocks for one console.

    Args:
        console: whose colours are used; nothing is written to it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def lines(self, block: Block, width: int) -> list[str]:
        """Return the lines of a block, an empty one before it where it needs to stand apart."""
        with self._console.use_theme(_THEME), self._console.capture() as captured:
            self._console.print(_Markdown(block), width=max(width, 4), end="", overflow="fold")
        text = captured.get().strip("\n")
        drawn = [_PAD.sub("", line) for line in text.split("\n")] if text else []
        return ["", *drawn] if block.follows == "block" else drawn


class _Heading(markdown.Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _CodeBlock(markdown.CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = self.text.plain.removesuffix("\n")
        language = "" if self.lexer_name == "text" else self.lexer_name
        yield Rule(Text(language[:20], style=_DIM), style=_DIM, align="left")
        if language and len(code) <= MAX_HIGHLIGHTED:
            yield Syntax(code, language, theme="ansi_dark", background_color="default", word_wrap=True)
        else:
            yield Text(code, overflow="fold", tab_size=4)
        yield Rule(style=_DIM)


class _HorizontalRule(markdown.HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style=_DIM)


class _Table(markdown.TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        assert self.header is not None
        assert self.header.row is not None
        for cell in self.header.row.cells:
            table.add_column(cell.content, justify=cell.justify, overflow="fold")
        for row in self.body.rows if self.body is not None else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


class _Marked(markdown.TextElement):
    """Blocks with a mark before their first line and another before the others."""

    def __init__(self) -> None:
        self.elements = Renderables()
        self._begun = False

    def on_child_close(self, context: markdown.MarkdownContext, child: markdown.MarkdownElement) -> bool:
        if self._begun and not isinstance(child, markdown.ListElement):
            self.elements.append(Text())
        self._begun = True
        self.elements.append(child)
        return False

    def marked(self, console: Console, options: ConsoleOptions, first: Segment, others: Segment) -> RenderResult:
        inner = options.update(width=max(options.max_width - len(first.text), 1), height=None)
        for number, line in enumerate(console.render_lines(self.elements, inner, pad=False) or [[]]):
            yield others if number else first
            yield from line
            yield Segment.line()


class _BlockQuote(_Marked):
    style_name = "markdown.block_quote"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.marked(console, options, Segment("│ ", _DIM), Segment("│ ", _DIM))


class _ListItem(_Marked, markdown.ListItem):
    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.marked(console, options, Segment(" • ", _BOLD), Segment("   "))

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        mark = f"{number}. ".rjust(4)
        yield from self.marked(console, options, Segment(mark, _BOLD), Segment(" " * len(mark)))


class _Markdown(markdown.Markdown):
    elements: ClassVar[dict[str, type[markdown.MarkdownElement]]] = markdown.Markdown.elements | {
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "hr": _HorizontalRule,
        "table_open": _Table,
        "blockquote_open": _BlockQuote,
        "list_item_open": _ListItem,
    }

    def __init__(self, block: Block) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = parser().parse(block.source)
        if block.number is not None:
            self.parsed[0].attrs["start"] = block.number
