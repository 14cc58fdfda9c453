"""The questions: twelve tests, in the five languages of Mixtral.

Contract: the texts are in questions.toml. Each can be judged by its check (`checks`).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}


@dataclass(frozen=True, slots=True)
class Question:
    """A question; an answer that reaches `max_tokens` is wrong."""

    test: str
    language: str
    text: str
    max_tokens: int


TEXTS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
"""The questions by test and language."""

MAX_TOKENS = {"snake": 1600, "letter": 700}
USUAL_MAX_TOKENS = 500


def questions(tests: tuple[str, ...] = tuple(TEXTS), languages: tuple[str, ...] = tuple(LANGUAGES)) -> list[Question]:
    """Return the questions of these tests in these languages, test by test."""
    return [
        Question(test, language, TEXTS[test][language], MAX_TOKENS.get(test, USUAL_MAX_TOKENS))
        for test in TEXTS
        if test in tests
        for language in LANGUAGES
        if language in languages and language in TEXTS[test]
    ]
