"""Questions about mixq itself, and what the demo model answers to things outside its world."""

from __future__ import annotations

from random import Random

from .turn import Turn, data

_DATA = data("about")


def turn(rng: Random) -> Turn:
    fact = rng.choice(_DATA["facts"])
    question = rng.choice(fact["ways"])
    if rng.random() < 0.25:
        question = question.rstrip("?. ") + rng.choice(("", "??", "?!"))
    if rng.random() < 0.25:
        question = question[0].lower() + question[1:]
    return Turn("mixq", rng.choice(_DATA["openings"]) + question, fact["answer"])
