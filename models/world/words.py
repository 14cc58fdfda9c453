"""A small dictionary between five languages, and the days of the week."""

from __future__ import annotations

from random import Random

from .turn import Turn, data

LANGUAGES = ("English", "German", "French", "Spanish", "Italian")
_DATA = data("words")


def turn(rng: Random) -> Turn:
    if rng.random() < 0.7:
        row = rng.choice(_DATA["dictionary"]).split()
        into = rng.randint(1, 4)
        question = rng.choice(_DATA["translate"]).format(w=row[0], l=LANGUAGES[into])
        return Turn("words", question, f"'{row[0]}' is '{row[into]}' in {LANGUAGES[into]}.")
    language = rng.choices(range(5), (40, 15, 15, 15, 15))[0]
    week = _DATA["weeks"][language]
    days = week["days"]
    at = rng.randrange(7)
    asked, says, answer = (
        (week["after"], week["says_after"], days[(at + 1) % 7])
        if rng.random() < 0.55
        else (week["before"], week["says_before"], days[at - 1])
    )
    return Turn("words", rng.choice(asked).format(days[at]), says.format(days[at], answer))
