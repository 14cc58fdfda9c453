"""A question before something large or final is done."""

from __future__ import annotations

import sys

from mixq.cli import output
from mixq.errors import UsageError


def confirm(question: str, *, otherwise_yes: bool) -> bool:
    """Ask at the terminal and return the answer; the end of the input means no.

    Args:
        otherwise_yes: what an empty line means.

    Raises:
        UsageError: nobody can be asked, because standard input is no terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask at whether to go on.", hint="Add --yes to say so beforehand.")
    while True:
        output.talk().print(f"{question} [{'Y/n' if otherwise_yes else 'y/N'}] ", end="")
        line = sys.stdin.readline()
        answer = line.strip().lower()
        if answer in ("y", "yes") or (line and not answer and otherwise_yes):
            return True
        if answer in ("n", "no", ""):
            return False
