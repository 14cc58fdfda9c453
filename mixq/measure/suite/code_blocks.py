"""Python out of an answer: the fenced block that is meant, or the whole answer where it is nothing but a program."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: what stands behind the fence (``python``), and its content."""

    label: str
    content: str


def fenced_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a Markdown text, one that is not closed too."""
    return [Block(match[2].lower(), match[3]) for match in _FENCE.finditer(text)]


def python_code(text: str) -> str:
    """Return the longest Python block; an unfenced answer only where all of it is a program.

    Raises:
        SyntaxError: there is a block, and it is no Python.
        LookupError: there is no code.
    """
    blocks = fenced_blocks(text)
    labelled = [block.content for block in blocks if block.label in ("python", "py", "python3")]
    candidates = labelled or [block.content for block in blocks if not block.label]
    if not candidates:
        code = text.strip()
        if not _is_program(code):
            raise LookupError("no Python code")
        return code
    whole = [code for code in candidates if _parses(code)]
    if not whole:
        parsed(max(candidates, key=len))
    return max(whole, key=len)


def parsed(code: str) -> ast.Module:
    """Return the tree of a program.

    Raises:
        SyntaxError: it is none, or one nested deeper than Python takes.
    """
    try:
        return ast.parse(code)
    except (ValueError, RecursionError, MemoryError) as error:  # zero bytes; nested too deep
        raise SyntaxError(str(error) or "nested too deep") from None


def _parses(code: str) -> bool:
    try:
        parsed(code)
    except SyntaxError:
        return False
    return True


def _is_program(text: str) -> bool:
    """Whether all of a text is Python that does something; a single word is Python too."""
    try:
        tree = parsed(text)
    except SyntaxError:
        return False
    return any(
        isinstance(node, ast.Call | ast.Import | ast.ImportFrom | ast.For | ast.While) for node in ast.walk(tree)
    )
