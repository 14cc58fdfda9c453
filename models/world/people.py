"""Names, cities and jobs; some names are invented, so that the model learns to copy any name."""

from __future__ import annotations

from random import Random

from .turn import data

_DATA = data("people")
NAMES, CITIES, JOBS = (_DATA[key].split() for key in ("names", "cities", "jobs"))


def invented(rng: Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 3))
    word = "".join(
        "".join(rng.choice(_DATA[part]) for part in ("onsets", "vowels", "codas")) for _ in range(syllables)
    ).capitalize()
    return word if len(word) > 2 else word + "na"


def name(rng: Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.8 else invented(rng)


def names(rng: Random, count: int, consonant: bool = False) -> list[str]:
    """Different names; with `consonant`, none that starts with a vowel, Y or H: French elides before those."""
    chosen: list[str] = []
    while len(chosen) < count:
        candidate = name(rng)
        if candidate not in chosen and not (consonant and candidate[0] in "AEIOUHY"):
            chosen.append(candidate)
    return chosen


def city(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.8 else invented(rng)
