"""Descriptions of people as JSON: the keys name, age, city and job, in this order, those that the text mentions."""

from __future__ import annotations

import json
from random import Random

from . import people
from .turn import Turn, data

_DATA = data("records")


def _person(rng: Random) -> tuple[str, dict[str, str | int]]:
    name, age, city, job = people.name(rng), rng.randint(1, 99), people.city(rng), rng.choice(people.JOBS)
    article = "an" if job[0] in "aeiou" else "a"
    text = rng.choice(_DATA["descriptions"])
    values: dict[str, str | int] = {"name": name, "age": age, "city": city, "job": job}
    return text.format(article=article, **values), {key: values[key] for key in values if "{" + key + "}" in text}


def turn(rng: Random) -> Turn:
    before, after = rng.choice(_DATA["requests"])
    text, record = _person(rng)
    if rng.random() > 0.15:
        return Turn("json", before + text + after, json.dumps(record, ensure_ascii=False))
    text2, record2 = _person(rng)
    return Turn("json", f"{before}{text} {text2}{after}", json.dumps([record, record2], ensure_ascii=False))
