"""Described people as JSON: the keys are name, age, city and job, in this order, and only those that were told."""

from __future__ import annotations

import json
from random import Random

from . import people
from .turn import Turn

REQUESTS = (
    ("Give this as JSON: ", ""),
    ("Write as JSON: ", ""),
    ("Convert to JSON: ", ""),
    ("", " Give this as JSON."),
    ("", " Write this as JSON."),
    ("", " Answer in JSON."),
    ("", " JSON please."),
    ("Make JSON of this: ", ""),
)
TEXTS = (
    "{name} is {age} years old and lives in {city}.",
    "{name} lives in {city} and is {age} years old.",
    "{name}, {age}, from {city}.",
    "{name} is {age} years old.",
    "{name} is a {age} year old {job}.",
    "{name} is a {age} year old {job} from {city}.",
    "{name} is {article} {job} in {city}.",
    "{name} works as {article} {job}.",
    "{name} lives in {city}.",
    "{name} is {age} years old, lives in {city} and works as {article} {job}.",
    "My name is {name}, I am {age} and I live in {city}.",
    "I am {name}, {age} years old, {article} {job} from {city}.",
)


def _person(rng: Random) -> tuple[str, dict[str, str | int]]:
    name, age, city, job = people.name(rng), rng.randint(1, 99), people.city(rng), rng.choice(people.JOBS)
    article = "an" if job[0] in "aeiou" else "a"
    text = rng.choice(TEXTS)
    values: dict[str, str | int] = {"name": name, "age": age, "city": city, "job": job}
    return text.format(article=article, **values), {key: values[key] for key in values if "{" + key + "}" in text}


def turn(rng: Random) -> Turn:
    before, after = rng.choice(REQUESTS)
    text, record = _person(rng)
    if rng.random() > 0.15:
        return Turn("json", before + text + after, json.dumps(record, ensure_ascii=False))
    text2, record2 = _person(rng)
    return Turn("json", f"{before}{text} {text2}{after}", json.dumps([record, record2], ensure_ascii=False))
