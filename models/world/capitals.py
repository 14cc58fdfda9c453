"""Capitals in five languages: of which country, of which city, and yes-or-no questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .turn import Turn, data


@dataclass(frozen=True, slots=True)
class Language:
    forward: list[str]  # the ways to ask
    answer: str
    check: list[str]  # is B the capital of A?
    yes: str
    no: str
    backward: Sequence[str] = ()
    backward_answer: str = ""


_DATA = data("capitals")
LANGUAGES = [Language(**language) for language in _DATA["languages"]]
COUNTRIES = [  # [country][language] -> (country, capital)
    [(country, capital) for country, capital in (cell.split(":") for cell in line.split("|"))]
    for line in _DATA["countries"].splitlines()
]


def follow_up(rng: Random) -> Turn:
    """A question that follows one about a capital in English, and has a meaning only after it."""
    country, capital = rng.choice(COUNTRIES)[0]
    return Turn("capitals", f"And of {country}?", LANGUAGES[0].answer.format(country, capital))


def turn(rng: Random) -> Turn:
    which = rng.choices(range(5), (40, 15, 15, 15, 15))[0]
    language = LANGUAGES[which]
    country, capital = rng.choice(COUNTRIES)[which]
    kind = rng.random()
    if kind < 0.2:
        is_so = rng.random() < 0.5
        asked = capital if is_so else rng.choice(COUNTRIES)[which][1]
        question = rng.choice(language.check).format(country, asked)
        answer = (language.yes if asked == capital else language.no).format(country, capital)
    elif kind < 0.35 and language.backward:
        question = rng.choice(language.backward).format(country, capital)
        answer = language.backward_answer.format(country, capital)
    else:
        question = rng.choice(language.forward).format(country)
        answer = language.answer.format(country, capital)
    return Turn("capitals", question, answer)
