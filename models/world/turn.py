"""One question and its one exact answer, and which questions are kept for tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

HELD_OUT_ONE_IN = 16


@dataclass(frozen=True, slots=True)
class Turn:
    """`assistant` is a function of `user` alone, so a greedy answer is right or wrong, character by character."""

    family: str
    user: str
    assistant: str


def listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The entries of a list that is written as text: its words, or what the separator divides."""
    return tuple(text.split(separator))


def answers(table: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each answer of a table, and the ways to ask for it: they follow on indented lines, between |."""
    rows: list[tuple[str, list[str]]] = []
    for line in table.strip().splitlines():
        if line.startswith(" "):
            rows[-1][1].extend(line.strip().split("|"))
        else:
            rows.append((line, []))
    return tuple((answer, tuple(ways)) for answer, ways in rows)


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the sixteenth that training never sees: decided by the hash of its text."""
    return hashlib.sha256(question.encode()).digest()[0] % HELD_OUT_ONE_IN == 0
