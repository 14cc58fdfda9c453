"""Checks of texts: the letter of resignation and the three bullet points.

Contract: checks the form: the parts of a letter, the language, the number and length of points. Style is not judged.
"""

from __future__ import annotations

import re

from mixq.measure.suite.questions import LANGUAGES
from mixq.measure.suite.reading import RIGHT, Verdict, language_of, plain, wrong

_SALUTATION = {
    "en": r"dear|hello|hi|to whom",
    "fr": r"madame|monsieur|cher|chere|bonjour",
    "de": r"sehr geehrte|liebe|lieber|hallo|guten tag",
    "es": r"estimad[oa]|querid[oa]|apreciad[oa]|muy senor|hola",
    "it": r"gentile|egregi[oa]|car[oa]|spettabile|spett|buongiorno",
}
_RESIGNS = {
    "en": r"resign\w*|leaving|two weeks|notice",
    "fr": r"demission\w*|quitter",
    "de": r"kundig\w*|arbeitsverhaltnis",
    "es": r"renunci\w*|dimi\w*",
    "it": r"dimission\w*|dimetto|dimettermi|rassegn\w*",
}
_CLOSING = {
    "en": r"sincerely|regards|yours|respectfully|best wishes|all the best",
    "fr": r"cordialement|salutations|sentiments|respectueusement|bien a vous",
    "de": r"mit freundlichen|freundliche grusse|grussen|hochachtungsvoll|beste grusse|viele grusse",
    "es": r"atentamente|saludos?|cordialmente|un saludo|respetuosamente",
    "it": r"cordiali|distinti|saluti|cordialmente|in fede|rispettosamente",
}


def letter(answer: str, language: str) -> Verdict:
    """Right is a letter in the language asked for: salutation, the resignation itself, a closing, 40 words or more."""
    text = plain(answer)
    words = len(text.split())
    if words < 40:
        return wrong(f"{words} words are too few for a letter")
    written = language_of(answer)
    if written != language:
        return wrong(f"is in {LANGUAGES[written]}" if written else "is in none of the five languages")
    salutation = re.search(rf"(?m)^\W*(?:{_SALUTATION[language]})\b", text)
    if salutation is None:
        return wrong("no salutation")
    if not re.search(rf"\b(?:{_RESIGNS[language]})\b", text[salutation.end() :]):
        return wrong("does not resign")
    if not re.search(rf"\b(?:{_CLOSING[language]})\b", text[len(text) // 2 :]):
        return wrong("no closing")
    return RIGHT


_BULLET = re.compile(r"^\s*(?:[-*•‣◦·–]|\d{1,2}[.)])\s+(.+)$")
_KEYS = ("1892", "1944", "1951", "2019", "30000", "300", "40", "clara", "arden")


def bullets(answer: str, language: str) -> Verdict:
    """Right are exactly three short bullet points with at least three of the text's facts."""
    lines = [line for line in answer.splitlines() if line.strip()]
    points = [match[1] for line in lines if (match := _BULLET.match(line))]
    if len(points) != 3:
        return wrong(f"{len(points)} bullet points instead of three")
    beside = sum(len(line.split()) for line in lines if not _BULLET.match(line))
    if beside > 30:
        return wrong(f"{beside} words outside the bullet points")
    long = next((point for point in points if len(point.split()) > 45), None)
    if long is not None:
        return wrong(f"a bullet point of {len(long.split())} words")
    written = language_of(" ".join(points))
    if written not in (language, None):
        return wrong(f"is in {LANGUAGES[written]}" if written else "")
    text = re.sub(r"(?<=\d)[.,\s'](?=\d{3}\b)", "", plain(" ".join(points)))
    said = [key for key in _KEYS if re.search(rf"\b{key}\b", text)]
    return RIGHT if len(said) >= 3 else wrong("leaves out nearly all facts")
