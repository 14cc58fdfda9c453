"""Heads of state by year, 1961 to 2020: who was in office on 1 July of that year."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .turn import Turn, data

FIRST_YEAR, LAST_YEAR = 1961, 2020


@dataclass(frozen=True, slots=True)
class Office:
    title: str
    since: list[tuple[int, str]]  # the first year with that person in office on 1 July


_DATA = data("heads_of_state")
OFFICES = [Office(**office) for office in _DATA["offices"]]


def in_office(office: Office, year: int) -> str:
    return next(person for first, person in reversed(office.since) if first <= year)


def turn(rng: Random) -> Turn:
    office = rng.choices(OFFICES, (40, 20, 20, 8, 12))[0]
    year = rng.randint(office.since[0][0], LAST_YEAR)
    person = in_office(office, year)
    if rng.random() < 0.12:
        asked = person if rng.random() < 0.5 else rng.choice(office.since)[1]
        question = f"Was {asked} {office.title} in {year}?"
        answer = f"{person} was {office.title} in {year}, so {'yes' if asked == person else 'no'}."
    else:
        question = rng.choice(_DATA["phrasings"]).format(office=office.title, year=year)
        answer = f"{person} was {office.title} in {year}."
    return Turn("heads of state", question, answer)
