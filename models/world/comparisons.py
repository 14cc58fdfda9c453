"""Who is faster than whom, in five languages, and which number is larger."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from . import people
from .turn import Turn, data


@dataclass(frozen=True, slots=True)
class Language:
    adjectives: list[str]
    fact: str  # who, adjective, whom
    question: str
    yes: str
    no: str


_DATA = data("comparisons")
ENGLISH = _DATA["english"]  # comparative, superlative, and their opposites
LANGUAGES = {code: Language(**language) for code, language in _DATA["languages"].items()}


def _facts(rng: Random, order: list[str], pattern: str, adjective: str) -> str:
    facts = [pattern.format(first, adjective, second) for first, second in pairwise(order)]
    if rng.random() < 0.15:
        rng.shuffle(facts)
    return " ".join(facts)


def _numbered(order: list[str]) -> str:
    """Each name with its rank, before the verdict: the model then only copies the number that follows a name."""
    return ", ".join(f"{person} {place}" for place, person in enumerate(order, 1))


def _people_in_english(rng: Random) -> Turn:
    order = people.names(rng, rng.choices((2, 3, 4), (30, 62, 8))[0])
    comparative, superlative, opposite, lowest = rng.choice(ENGLISH)
    if rng.random() < 0.3:
        comparative, superlative, opposite, lowest = opposite, lowest, comparative, superlative
    facts = _facts(rng, order, "{0} is {1} than {2}.", comparative)
    if rng.random() < 0.3:
        word, who = (superlative, order[0]) if rng.random() < 0.7 else (lowest, order[-1])
        return Turn("comparisons", f"{facts} Who is the {word}?", f"{_numbered(order)}. The {word} is {who}.")
    left, right = rng.sample(range(len(order)), 2)
    word, is_so = (comparative, left < right) if rng.random() < 0.9 else (opposite, left > right)
    first, second = order[left], order[right]
    verdict = f"yes, {first} is {word} than {second}" if is_so else f"no, {first} is not {word} than {second}"
    answer = f"{_numbered(order)}. {first} {left + 1}, {second} {right + 1}: {verdict}."
    return Turn("comparisons", f"{facts} Is {first} {word} than {second}?", answer)


def _people_elsewhere(rng: Random) -> Turn:
    key = rng.choice(tuple(LANGUAGES))
    language = LANGUAGES[key]
    order = people.names(rng, rng.choices((2, 3), (25, 75))[0], consonant=key == "fr")
    adjective = rng.choice(language.adjectives)
    facts = _facts(rng, order, language.fact, adjective)
    left, right = rng.sample(range(len(order)), 2)
    first, second = order[left], order[right]
    verdict = (language.yes if left < right else language.no).format(first, adjective, second)
    question = f"{facts} {language.question.format(first, adjective, second)}"
    return Turn("comparisons", question, f"{_numbered(order)}. {first} {left + 1}, {second} {right + 1}: {verdict}")


def _numbers(rng: Random) -> Turn:
    left, right = rng.sample(range(200), 2) if rng.random() < 0.5 else rng.sample(range(30), 2)
    low, high = min(left, right), max(left, right)
    word = rng.choice(("larger", "smaller"))
    if rng.random() < 0.5:
        chosen, other = (high, low) if word == "larger" else (low, high)
        question = rng.choice(
            ("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "What is {w}, {a} or {b}?")
        )
        answer = f"{chosen} is {word} than {other}."
    else:
        question = rng.choice(("Is {a} {w} than {b}?", "is {a} {w} than {b}", "Tell me if {a} is {w} than {b}."))
        truth = "larger" if left > right else "smaller"
        answer = f"{left} is {truth} than {right}, so {'yes' if truth == word else 'no'}."
    return Turn("comparisons", question.format(w=word, a=left, b=right), answer)


def turn(rng: Random) -> Turn:
    return rng.choices((_people_in_english, _people_elsewhere, _numbers), (50, 22, 28))[0](rng)
