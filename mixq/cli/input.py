"""Input from the user: UTF-8 text, and answers to questions."""

from __future__ import annotations

import sys

from mixq.cli import output
from mixq.errors import PromptError, UsageError


def utf8(data: bytes, name: str) -> str:
    """Return `data` as text without a byte order mark.

    Raises:
        PromptError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}.",
            hint="Convert it, for example with `iconv -f LATIN1 -t UTF-8`.",
        ) from None


def confirm(question: str, *, default: bool) -> bool:
    """Ask at the terminal and return the answer: an empty line means the default, the end of the input means no.

    Raises:
        UsageError: standard input is not a terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError("Standard input is not a terminal, so mixq cannot ask.", hint="Pass --yes to continue.")
    while True:
        output.talk().print(f"{question} [{'Y/n' if default else 'y/N'}] ", end="")
        line = sys.stdin.readline()
        answer = line.strip().lower()
        if answer in ("y", "yes") or (line and not answer and default):
            return True
        if answer in ("n", "no", ""):
            return False
