"""Counting up, down and by steps, counting things in a list, sorting, and small stories of apples."""

from __future__ import annotations

from random import Random

from . import people
from .turn import Turn, data

THINGS = data("counting")["things"]


def _plural(thing: str) -> str:
    return "cherries" if thing == "cherry" else thing + "s"


def _sequence(rng: Random) -> tuple[str, str]:
    kind = rng.random()
    start, length = rng.randint(0, 60), rng.randint(2, 12)
    if kind < 0.4:
        end, step = start + length, 1
        patterns: tuple[str, ...] = ("Count from {a} to {b}.", "count from {a} to {b}", "Please count from {a} to {b}.")
        patterns += ("Zähle von {a} bis {b}.", "Compte de {a} à {b}.", "Cuenta de {a} a {b}.", "Conta da {a} a {b}.")
    elif kind < 0.7:
        start += length
        end, step = start - length, -1
        patterns = ("Count down from {a} to {b}.", "Count backwards from {a} to {b}.")
    else:
        step = rng.choice((2, 3, 5, 10))
        start = rng.randint(0, 5) * step
        end = start + min(length, 8) * step
        patterns = ("Count from {a} to {b} in steps of {s}.", "Count by {s} from {a} to {b}.")
    numbers = range(start, end + (1 if step > 0 else -1), step)
    return rng.choice(patterns).format(a=start, b=end, s=step), ", ".join(map(str, numbers))


def _how_many(rng: Random) -> tuple[str, str]:
    kinds = rng.sample(THINGS, rng.randint(2, 3))
    items = [rng.choice(kinds) for _ in range(rng.randint(2, 8))]
    listed = ", ".join(items)
    if rng.random() < 0.35:
        # The model numbers the items first; the last number is the count.
        numbered = ", ".join(f"{i} {item}" for i, item in enumerate(items, 1))
        question = rng.choice(("How many things are in this list: {}?", "How many items are there: {}?")).format(listed)
        return question, f"{numbered}. There are {len(items)}."
    thing = rng.choice(kinds)
    patterns = ("How often does {t} appear in this list: {l}?", "Count the {p}: {l}.", "How many {p} are here: {l}?")
    numbers = iter(range(1, 9))
    tally = ", ".join(f"{item} {next(numbers)}" if item == thing else item for item in items)
    question = rng.choice(patterns).format(t=thing, p=_plural(thing), l=listed)
    return question, f"{tally}. {thing.capitalize()}: {items.count(thing)}."


def _sorting(rng: Random) -> tuple[str, str]:
    numbers = rng.sample(range(1, 100), rng.randint(2, 5))
    listed = ", ".join(map(str, numbers))
    kind = rng.randrange(4)
    if kind == 0:
        return f"Sort {listed}.", ", ".join(map(str, sorted(numbers)))
    if kind == 1:
        return f"Reverse this list: {listed}.", ", ".join(map(str, reversed(numbers)))
    if kind == 2:
        return f"What is the largest of {listed}?", f"The largest is {max(numbers)}."
    return f"What is the smallest of {listed}?", f"The smallest is {min(numbers)}."


def _story(rng: Random) -> tuple[str, str]:
    first, second = people.names(rng, 2)
    things = _plural(rng.choice(THINGS))
    a, b = rng.randint(2, 30), rng.randint(2, 20)
    if rng.random() < 0.5:
        told = rng.choice(("{0} has {a} {t} and gets {b} more.", "{0} has {a} {t}. {1} gives {0} {b} more."))
        work, left = f"{a} + {b} = {a + b}", a + b
    else:
        a += b
        told = rng.choice(("{0} has {a} {t} and loses {b}.", "{0} has {a} {t}. {0} gives {1} {b}."))
        work, left = f"{a} - {b} = {a - b}", a - b
    question = told.format(first, second, a=a, b=b, t=things) + f" How many {things} does {first} have now?"
    return question, f"{work}. {first} has {left} {things}."


def turn(rng: Random) -> Turn:
    question, answer = rng.choices((_sequence, _how_many, _sorting, _story), (30, 25, 25, 20))[0](rng)
    return Turn("counting", question, answer)
