"""Hello, thanks and goodbye in five languages; each answer keeps the language and the name."""

from __future__ import annotations

from random import Random

from . import people
from .turn import Turn, data

LANGUAGES = tuple(data("greetings").values())  # English, German, French, Spanish, Italian
QUESTIONS = ("How", "Are", "Wie", "Geht", "Comment", "Ça va", "¿", "Come", "Tutto")


def _said(rng: Random, words: str) -> str:
    """Vary capitals and punctuation as people do."""
    if words.startswith(QUESTIONS):
        said = words + rng.choice(("?", "?", "??", " ?", ""))
    else:
        said = words + rng.choice(("", ".", "!", "!", "!!", " :)", "..."))
    return said[0].lower() + said[1:] if rng.random() < 0.3 else said


def turn(rng: Random) -> Turn:
    language = LANGUAGES[rng.choices(range(5), (40, 15, 15, 15, 15))[0]]
    entry = rng.choice(language)
    words, answer = rng.choice(entry["ways"]), entry["answer"]
    if "{n}" in answer:
        person = people.name(rng)
        words, answer = words.replace("{n}", person), answer.replace("{n}", person)
    return Turn("greetings", _said(rng, words), answer)


def introduction(rng: Random) -> tuple[Turn, Turn]:
    """The user says a name and later asks for it; the question makes sense only after the first turn."""
    person = people.name(rng)
    hello = LANGUAGES[0][1]
    told = rng.choice(hello["ways"]).replace("{n}", person)
    asked = rng.choice(("What is my name?", "Who am I?", "Do you remember my name?"))
    return (
        Turn("greetings", _said(rng, told), hello["answer"].replace("{n}", person)),
        Turn("greetings", asked, f"Your name is {person}."),
    )
