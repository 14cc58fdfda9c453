"""A question with one exact answer, and which questions are kept for tests."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELD_OUT_ONE_IN = 16


@dataclass(frozen=True, slots=True)
class Turn:
    """`assistant` is a function of `user` alone, so a greedy answer is right or wrong, character by character."""

    family: str
    user: str
    assistant: str


def data(family: str) -> dict[str, Any]:
    """Return the facts and sentences of a family, from its TOML file in this folder."""
    return tomllib.loads((Path(__file__).parent / f"{family}.toml").read_text("utf-8"))


def is_held_out(question: str) -> bool:
    """Whether the hash of a question's text puts it among the sixteenth that is never trained on."""
    return hashlib.sha256(question.encode()).digest()[0] % HELD_OUT_ONE_IN == 0
