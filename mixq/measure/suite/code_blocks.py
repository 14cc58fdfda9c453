"""Extracts Python code from an answer: a fenced block, or the whole answer if all of it is a program."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the label after the fence (``python``) and the content."""

    label: str
    content: str


def fenced_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a Markdown text; the last may be unclosed."""
    return [Block(match[2].lower(), match[3]) for match in _FENCE.finditer(text)]


def python_code(text: str) -> str:
    """Return the longest Python block, or the whole answer if it has no block and parses as a program.

    Raises:
        SyntaxError: a block does not parse as Python.
        LookupError: the answer has no code.
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
    """Return the syntax tree of a program.

    Raises:
        SyntaxError: it does not parse, or is nested too deep for Python.
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
    """Whether a text is Python with a call, an import or a loop (a single word parses as Python too)."""
    try:
        tree = parsed(text)
    except SyntaxError:
        return False
    return any(
        isinstance(node, ast.Call | ast.Import | ast.ImportFrom | ast.For | ast.While) for node in ast.walk(tree)
    )
