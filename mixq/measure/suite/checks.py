"""The check of each test, and the most words of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable

from mixq.measure.suite import facts, places, programs, reasoning, writing
from mixq.measure.suite.questions import TEXTS
from mixq.measure.suite.reading import Verdict, unfit, wrong

Check = Callable[[str, str], Verdict]

CHECKS: dict[str, tuple[Check, int]] = {
    "numbers": (programs.numbers, 300),
    "snake": (programs.snake, 1500),
    "letter": (writing.letter, 600),
    "president": (facts.president, 150),
    "shirts": (reasoning.shirts, 350),
    "faster": (reasoning.faster, 250),
    "arithmetic": (facts.arithmetic, 200),
    "killers": (reasoning.killers, 300),
    "bullets": (writing.bullets, 200),
    "json": (facts.people_json, 200),
    "marble": (places.marble, 350),
    "ball": (places.ball, 300),
}


RIDDLES = ("shirts", "faster", "killers", "marble", "ball")
"""Sentences of the question are removed from the answer before it is judged."""


def check(test: str, language: str, answer: str) -> Verdict:
    """Return whether a complete answer is right."""
    judge, most_words = CHECKS[test]
    problem = unfit(answer, most_words)
    if problem:
        return wrong(problem)
    if test in RIDDLES:
        for sentence in re.split(r"(?<=[.?])\s+", TEXTS[test][language]):
            answer = answer.replace(sentence, "")
    return judge(answer, language)
