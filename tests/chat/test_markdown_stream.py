"""Markdown while it comes: the same screen however it was cut, nothing in the scrollback that is not final."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from mixq.chat.live_region import LiveRegion
from mixq.chat.markdown_blocks import BlockSplitter
from mixq.chat.markdown_render import Renderer
from mixq.chat.markdown_stream import MarkdownStream, PlainStream
from tests.chat.screen import Screen

ALL_KINDS = """\
# Title
Some *emph* and **bold `code`**, <b>html</b>, [a link](http://example.org/a?b=c) and ![an image](u)
next line

1. one
1. two
   with a paragraph

   ```python
   def f(x):
       return "x"
   ```
1. three
   - nested
     - deeper
2. four
> quote *a*
> - b

| Stadt | 人口 |
|---|--:|
| 東京 | 37 |
| Lima | 11 |

```py
y = \"\"\"abc
```
Setext
===
- a

- b
* c
---
    indented code
end"""


def console(colour: bool = True) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system="truecolor" if colour else None)


class Reply:
    """A reply on a screen; a frame is due at each piece."""

    def __init__(self, columns: int = 80, rows: int = 24, *, colour: bool = True) -> None:
        self.screen = Screen(columns, rows)
        self.seconds = 0.0
        region = LiveRegion(self.screen.write, self.screen.size, lambda _seconds: None)
        self.stream = MarkdownStream(region, Renderer(console(colour)), self.screen.size, lambda: self.seconds)

    def push(self, *pieces: str) -> None:
        for piece in pieces:
            self.seconds += 1
            self.stream.push(piece)

    def finish(self) -> None:
        self.stream.finish()


def show(pieces: Sequence[str], columns: int = 80, rows: int = 24) -> Screen:
    """Return the screen after a reply in these pieces."""
    reply = Reply(columns, rows)
    reply.push(*pieces)
    reply.finish()
    return reply.screen


def cut(text: str, places: Sequence[int]) -> list[str]:
    inside = sorted(place % (len(text) + 1) for place in places)
    return [text[a:b] for a, b in itertools.pairwise([0, *inside, len(text)])]


FRAGMENTS = st.sampled_from(
    [
        *(
            "\n",
            "\n\n",
            "\n\n\n",
            "- ",
            "* ",
            "1. ",
            "2) ",
            "10. ",
            "\n- [ ] ",
            "# ",
            "> ",
            "```",
            "```py\n",
            "    ",
            "  ",
        ),
        *("|", "|---|", "a|b\n", "---", "===", "**", "*", "`", "~~", "[a](b)", "[r]: /u\n", "![i](u)", "<b>", "&amp;"),
        *("word ", "def f():", "日本語", "é", "\\", "\t", "x" * 50, "http://x.y"),
    ]
)
MARKDOWN = st.lists(FRAGMENTS, max_size=25).map("".join)


@given(MARKDOWN, st.lists(st.integers(0, 10**6), max_size=20), st.sampled_from([(80, 24), (20, 5), (40, 6)]))
@example(ALL_KINDS, list(range(len(ALL_KINDS))), (80, 24))
@example(ALL_KINDS, list(range(len(ALL_KINDS))), (20, 5))
@settings(max_examples=150, deadline=None)
def test_the_final_screen_does_not_depend_on_how_the_text_came(
    text: str, places: list[int], size: tuple[int, int]
) -> None:
    whole = show([text], *size)
    in_pieces = show(cut(text, places), *size)
    assert in_pieces.lines == whole.lines
    assert in_pieces.cursor_shown
    assert in_pieces.wraps
    assert in_pieces.column == 0


@given(MARKDOWN, st.lists(st.integers(0, 10**6), max_size=20))
@settings(max_examples=200, deadline=None)
def test_finished_blocks_are_those_of_the_whole_text(text: str, places: list[int]) -> None:
    whole = BlockSplitter()
    first = whole.push(text)
    splitter = BlockSplitter()
    blocks = [block for piece in cut(text, places) for block in splitter.push(piece)]
    assert [*blocks, *splitter.finish()] == [*first, *whole.finish()]


def test_what_each_kind_of_block_looks_like() -> None:
    assert show([ALL_KINDS], 60, 24).lines == [
        "Title",
        "",
        "Some emph and bold code, <b>html</b>, a link",
        "(http://example.org/a?b=c) and !an image (u)",
        "next line",
        "",
        " 1. one",
        " 2. two",
        "    with a paragraph",
        "",
        "    python " + "─" * 48,
        "    def f(x):",
        '        return "x"',
        "    " + "─" * 55,
        " 3. three",
        "     • nested",
        "        • deeper",
        " 4. four",
        "",
        "│ quote a",
        "│  • b",
        "",
        "Stadt   人口",
        "────────────",
        "東京      37",
        "Lima      11",
        "",
        "py " + "─" * 56,
        'y = """abc',
        "─" * 59,
        "",
        "Setext",
        "",
        " • a",
        " • b",
        "",
        " • c",
        "",
        "─" * 59,
        "",
        "─" * 59,
        "indented code",
        "─" * 59,
        "",
        "end",
    ]


def test_lines_of_a_paragraph_keep_their_indentation() -> None:
    code = "def f(n):\n    if n:\n        return *n*\n    return 0"
    assert show([code]).lines == code.replace("*", "").split("\n")
    assert show(["- a\n    b\n  c"]).lines == [" • a", "     b", "   c"]


def test_block_taller_than_the_screen_shows_its_end_and_reaches_the_scrollback_once() -> None:
    reply = Reply(40, 8)
    reply.push("```\n", *(f"line {n}\n" for n in range(40)))
    assert reply.screen.scrolled == []
    assert "line 39" in reply.screen.lines
    reply.push("```\n\nAnd so on.")
    reply.finish()
    assert reply.screen.lines == ["─" * 39, *(f"line {n}" for n in range(40)), "─" * 39, "", "And so on."]


def test_only_what_changed_is_drawn() -> None:
    screen = show([f"- item {n}\n" for n in range(10)] + ["\nwords "] + ["more "] * 20)
    finished = sum(len(line) for line in screen.lines)
    assert screen.written < 20 * len("words " + "more " * 20) + 3 * finished
    before = screen.written
    LiveRegion(screen.write, screen.size).update([], [])
    assert screen.written == before


def test_many_words_make_few_frames() -> None:
    now = 0.0
    frames = []
    screen = Screen()
    region = LiveRegion(frames.append, screen.size)
    stream = MarkdownStream(region, Renderer(console()), screen.size, lambda: now)
    for _ in range(1000):
        now += 0.001
        stream.push("word ")
    assert 10 < len(frames) <= 31


def test_markers_wait_for_what_they_become() -> None:
    for pieces, shown in (
        (["para\n", "-"], ["para"]),
        (["```"], []),
        (["text\n\n", "1."], ["text"]),
        (["**"], []),
        (["a ", "*"], ["a *"]),
    ):
        reply = Reply()
        reply.push(*pieces)
        assert reply.screen.lines == shown


def test_window_made_narrower_while_a_block_is_open() -> None:
    reply = Reply(40, 10)
    reply.push("done before\n\nThese words fill a line of the window and more of it")
    reply.screen.reflow(20)
    reply.screen.sizes = [(30, 10)]  # what the window was in between
    reply.push(" indeed.")
    reply.finish()
    assert reply.screen.lines == [
        "done before",
        "",
        "These words fill a",
        "line of the window",
        "and more of it",
        "indeed.",
    ]


@pytest.mark.parametrize(
    "hostile", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\rb", "a\x08b", "\u202eabc", "\x00", "\x1b[?1049h"]
)
def test_control_characters_are_shown(hostile: str) -> None:
    for text in (
        hostile,
        f"```\n{hostile}\n```",
        f"- {hostile}",
        f"`{hostile}`",
        f"[{hostile}](http://x/{hostile})",
        f"# {hostile}",
    ):
        screen = show([text])  # which fails on any sequence of which it does not know the sender
        assert any("\\x" in line or "\\u202e" in line or "\\r" in line for line in screen.lines), screen.lines


def test_plain_stream_is_exact_in_a_file_and_harmless_on_a_terminal() -> None:
    file = io.StringIO()
    stream = PlainStream(file)
    for piece in ("a\x1b[31m", "\r", "# *b*"):
        stream.push(piece)
    stream.finish()
    assert file.getvalue() == "a\x1b[31m\r# *b*\n"
    terminal = Terminal()
    stream = PlainStream(terminal)
    stream.push("a\x1b[31m\r\x9b\n")
    stream.finish()
    assert terminal.getvalue() == "a\\x1b[31m\\r\\x9b\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_colour_no_colour_is_sent() -> None:
    sent = []
    region = LiveRegion(sent.append, lambda: (60, 24))
    stream = MarkdownStream(region, Renderer(console(colour=False)), lambda: (60, 24))
    stream.push(ALL_KINDS)
    stream.finish()
    assert not re.search(r"\x1b\[[0-9;]*m", "".join(sent))
