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


def listed(text: str) -> tuple[str, ...]:
    """The words of a table that is written as text."""
    return tuple(text.split())


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the sixteenth that training never sees: decided by the hash of its text."""
    return hashlib.sha256(question.encode()).digest()[0] % HELD_OUT_ONE_IN == 0
