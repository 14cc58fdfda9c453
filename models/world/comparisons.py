"""Who is faster than whom, in five languages, and which number is larger."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from . import people
from .turn import Turn

# comparative, superlative, and their opposites
ENGLISH = (
    ("faster", "fastest", "slower", "slowest"),
    ("taller", "tallest", "shorter", "shortest"),
    ("older", "oldest", "younger", "youngest"),
    ("stronger", "strongest", "weaker", "weakest"),
    ("richer", "richest", "poorer", "poorest"),
    ("heavier", "heaviest", "lighter", "lightest"),
)


@dataclass(frozen=True, slots=True)
class Language:
    adjectives: tuple[str, ...]
    fact: str  # who, adjective, whom
    question: str
    yes: str
    no: str


LANGUAGES = {
    "de": Language(
        ("schneller", "größer", "älter", "stärker", "jünger"),
        "{0} ist {1} als {2}.",
        "Ist {0} {1} als {2}?",
        "ja, {0} ist {1} als {2}.",
        "nein, {0} ist nicht {1} als {2}.",
    ),
    "fr": Language(
        ("rapide", "jeune", "riche", "mince"),
        "{0} est plus {1} que {2}.",
        "Est-ce que {0} est plus {1} que {2} ?",
        "oui, {0} est plus {1} que {2}.",
        "non, {0} n'est pas plus {1} que {2}.",
    ),
    "es": Language(
        ("fuerte", "joven", "grande", "amable"),
        "{0} es más {1} que {2}.",
        "¿Es {0} más {1} que {2}?",
        "sí, {0} es más {1} que {2}.",
        "no, {0} no es más {1} que {2}.",
    ),
    "it": Language(
        ("veloce", "giovane", "forte", "grande"),
        "{0} è più {1} di {2}.",
        "{0} è più {1} di {2}?",
        "sì, {0} è più {1} di {2}.",
        "no, {0} non è più {1} di {2}.",
    ),
}


def _facts(rng: Random, order: list[str], pattern: str, adjective: str) -> str:
    facts = [pattern.format(first, adjective, second) for first, second in pairwise(order)]
    if rng.random() < 0.15:
        rng.shuffle(facts)
    return " ".join(facts)


def _numbered(order: list[str]) -> str:
    """The work before the verdict. The place follows the name, so that looking it up is copying what came next."""
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
