"""Heads of state by year, 1961 to 2020: who was in office on 1 July of that year."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .turn import Turn, answers, listed

FIRST_YEAR, LAST_YEAR = 1961, 2020


@dataclass(frozen=True, slots=True)
class Office:
    title: str
    since: tuple[tuple[int, str], ...]  # the first year with that person in office on 1 July


_TABLE = """
president of the United States
  1961 John F. Kennedy|1964 Lyndon B. Johnson|1969 Richard Nixon|1975 Gerald Ford|1977 Jimmy Carter|1981 Ronald Reagan
  1989 George H. W. Bush|1993 Bill Clinton|2001 George W. Bush|2009 Barack Obama|2017 Donald Trump
president of France
  1961 Charles de Gaulle|1969 Georges Pompidou|1974 Valéry Giscard d'Estaing|1981 François Mitterrand
  1995 Jacques Chirac|2007 Nicolas Sarkozy|2012 François Hollande|2017 Emmanuel Macron
president of Germany
  1961 Heinrich Lübke|1969 Gustav Heinemann|1974 Walter Scheel|1979 Karl Carstens|1984 Richard von Weizsäcker
  1994 Roman Herzog|1999 Johannes Rau|2004 Horst Köhler|2010 Christian Wulff|2012 Joachim Gauck
  2017 Frank-Walter Steinmeier
monarch of the United Kingdom
  1961 Elizabeth II
king of Spain
  1976 Juan Carlos I|2014 Felipe VI
"""
OFFICES = tuple(
    Office(title, tuple((int(year), person) for year, person in (entry.split(" ", 1) for entry in since)))
    for title, since in answers(_TABLE)
)
PHRASINGS = listed(
    "Who was {office} in {year}?|Who was the {office} in {year}?|who was {office} in {year}|"
    "In {year}, who was {office}?|Who was {office} in the year {year}?|Name the {office} in {year}.|"
    "Tell me who was {office} in {year}.|Do you know who was {office} in {year}?|{office} in {year}?|"
    "Who held the office of {office} in {year}?",
    "|",
)


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
        question = rng.choice(PHRASINGS).format(office=office.title, year=year)
        answer = f"{person} was {office.title} in {year}."
    return Turn("heads of state", question, answer)
