"""Checks of questions with one right answer: arithmetic, the president, JSON for three people.

Contract: as in `reasoning`, the conclusion is judged, not the wording.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mixq.measure.suite.programs import fenced_blocks
from mixq.measure.suite.reading import RIGHT, Verdict, denied, plain, with_digits, wrong

_RESULT = re.compile(
    r"\b(?:answer|result|equals?|value|total|reponse|resultat|font|fait|antwort|ergebnis|ergibt|respuesta|resultado"
    r"|es igual a|risposta|risultato|fa)\b\W*(?:[a-z']+\W+){0,4}?(-?\d+)\b(?![.,]\d|\s*[-+*/x×(])"
)


def arithmetic(answer: str, language: str) -> Verdict:
    """Right is 25 - (4 * 2) + 3 = 20."""
    text = with_digits(plain(answer), language)
    text = re.sub(r"(?m)^\s*\d{1,2}[.)]\s+", "", text)  # numbers of steps
    text = re.sub(r"(?<=\d)[.,]0+\b", "", text)
    text = re.sub(r"25 ?- ?\(4 ?[*x×·] ?2\) ?\+ ?3", "it", text)
    named = [int(match[1]) for match in _RESULT.finditer(text)]
    equal = [int(match[1]) for match in re.finditer(r"=\s*(-?\d+)\b(?![.,]\d|\s*[-+*/x×(=\d])", text)]
    every = [int(number) for number in re.findall(r"(?<![\w.,])-?\d+\b(?![.,]\d)", text)]
    values = named or equal[-1:] or every[-1:]
    if not values:
        return wrong("gives no number")
    others = [value for value in values if value != 20]
    return wrong(f"says {others[-1]}; it is 20") if others else RIGHT


_PEOPLE = (
    r"(?:(?P<right>(?:(?:bill|william)(?: (?:jefferson|j\.?))? )?clinton)|(?:george (?:h\.? ?w\.? |w\.? )?)?bush"
    r"|reagan|obama|carter|nixon|trump|biden|ford|kennedy|gore|dole|perot|johnson|lincoln|washington(?! d))"
)
_BESIDE = re.compile(
    r"\b(?:defeat\w*|beat\w*|against|over|succe\w*|preced\w*|replac\w*|follow\w*|after|before|until|took over from"
    r"|vice|first lady|wife|opponent|rival|candidate|batt\w*|contre|face a|apres|avant|success?eur|prede\w*|vaincu"
    r"|gegen|nach|vor|nachfolg\w*|vorgang\w*|besiegt\w*|folgt\w*|abgelost"
    r"|contra|tras|antes|despues|sucesor|sucedi\w*|derrot\w*|venci\w*"
    r"|contro|dopo|prima|sconfi\w*|successore|battendo)\b(?:\W+(?!clinton)[\w.']+){0,5}\W*$"
)
_HILLARY = re.compile(r"\b(?:hillary|chelsea)\b(?: \w+)? clinton|\bmrs\.? clinton")


def president(answer: str, language: str) -> Verdict:
    """Right is Bill Clinton; predecessors, successors, opponents and family may be mentioned."""
    spoken = plain(answer)
    text = _HILLARY.sub("his wife", spoken)
    named = []
    for match in re.finditer(rf"\b{_PEOPLE}\b", text):
        if not denied(text, match.start(), 2) and not _BESIDE.search(re.split(r"[.!?\n]\s", text[: match.start()])[-1]):
            named.append(match)
    if not named:
        return wrong("names no president" if text == spoken else "names Hillary Clinton")
    others = [match[0] for match in named if match["right"] is None]
    if named[0]["right"] is None:
        return wrong(f"names {others[0].title()}; it was Bill Clinton")
    for other in map(re.escape, others):
        joined = r"(?:and|or|&|et|ou|und|oder|y|o|e)"
        if re.search(rf"\b1996\b[^.]*\b{other}\b|clinton {joined} (?:\w+ )?{other}\b|\b{other} {joined} ", text):
            return wrong(f"names {others[0].title()} too")
    return RIGHT


PEOPLE = {"mark": ("m", 19), "joe": ("m", 19), "sam": ("f", 30)}
_MALE = "m male man homme masculin mannlich mann hombre masculino varon maschio uomo maschile"
_FEMALE = "f w female woman femme feminin weiblich frau mujer femenino femmina donna femminile"


def people_json(answer: str, language: str) -> Verdict:
    """Right are three objects with name, gender and age as in the question."""
    blocks = [content for label, content in fenced_blocks(answer) if label in ("", "json")]
    text = max(blocks, key=len) if blocks else answer
    try:
        document = _first_json(text)
    except ValueError as error:
        return wrong(f"not JSON: {error}")
    if isinstance(document, dict) and len(document) == 1:
        document = next(iter(document.values()))
    if not isinstance(document, list):
        return wrong("not an array of people")
    if len(document) != 3 or not all(isinstance(person, dict) for person in document):
        return wrong(f"{len(document)} entries instead of three objects")
    found = {}
    for person in document:
        missing = [key for key in ("name", "gender", "age") if key not in person]
        if missing:
            return wrong(f"a person without {missing[0]!r}")
        gender = plain(str(person["gender"])).strip()
        letter = "m" if gender in _MALE.split() else "f" if gender in _FEMALE.split() else gender
        found[plain(str(person["name"])).strip()] = (letter, _age(person["age"]))
    for name, facts in PEOPLE.items():
        if name not in found:
            return wrong(f"{name.title()} is missing")
        if found[name] != facts:
            return wrong(f"{name.title()} is {found[name][0]}, {found[name][1]}; should be {facts[0]}, {facts[1]}")
    return RIGHT


def _age(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _first_json(text: str) -> Any:
    """Return the first array or object in a text; ValueError if there is none."""
    start = re.search(r"[\[{]\s*(?=[\"\[{\]}])", text)
    if start is None:
        raise ValueError("no array or object found")
    try:
        return json.JSONDecoder().raw_decode(text, start.start())[0]
    except RecursionError:
        raise ValueError("nested too deep") from None
