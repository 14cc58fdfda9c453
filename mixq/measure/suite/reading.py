"""Text functions for the checks: lower-case words without accents, numbers as digits, sentences, main clauses.

Contract: pure functions of text, for five languages. `unfit` finds what is wrong with an answer to any question:
empty, too long, repetitive, or continuing with an invented turn of the conversation.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right; `reason`: why not."""

    passed: bool
    reason: str = ""


RIGHT = Verdict(True)


def wrong(reason: str) -> Verdict:
    """Return the verdict on a wrong answer."""
    return Verdict(False, reason)


NUMBERS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty",
    "fr": "zero - deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf vingt",
    "de": "null eins zwei drei vier funf sechs sieben acht neun zehn elf zwolf dreizehn vierzehn funfzehn sechzehn "
    "siebzehn achtzehn neunzehn zwanzig",
    "es": "cero - dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis diecisiete "
    "dieciocho diecinueve veinte",
    "it": "zero - due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove venti",
}
"""0 to 20, without words that are also articles (un, ein)."""

NOT = r"(?:not|never|no|cannot|\w+n't|neither|nor|pas|ne|n|non|ni|jamais|nicht|kein\w*|nie|weder|nunca|mai|ne)"
INSTEAD_OF = r"(?:instead of|rather than|au lieu de|plutot que|statt|anstatt|en lugar de|en vez de|invece (?:di|che))"
BECAUSE = (
    r"(?:because|since|as each|parce que?|puisque|car|weil|da|denn|porque|ya que|puesto que|perche|poiche|dato che)"
)

_STOP_WORDS = {
    "en": "the and you of to is for my in that with it this was be your will on its has by",
    "fr": "le la les des et vous je pour mon que est une dans du au ma mes ce votre sur",
    "de": "der die das und ich fur mein meine nicht ist sie zu den mit von dem auf ihnen ein eine",
    "es": "el los las y usted para mi que por en de con una del al es se su mis le",
    "it": "il gli e per mio che di della sono con la una nel dal le mia alla ho lo si",
}
_TURN = re.compile(
    r"<\|im_(?:start|end)\|>|\[/?INST\]|</?s>|^\s*(?:###\s*)?(?:User|Human|Instruction|Assistant)\s*:", re.MULTILINE
)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")


def plain(text: str) -> str:
    """Return lower-case text without accents, emphasis and typographic quotes: `größer` is `grosser`."""
    folded = unicodedata.normalize("NFKD", text.casefold().replace("’", "'").replace("`", ""))
    kept = "".join(c for c in folded if not unicodedata.combining(c))
    return re.sub(r"[*_#]+(?=\S)|(?<=\S)[*_]+(?=\W|$)", "", kept).replace("–", "-").replace("—", ", ").replace("−", "-")


def with_digits(text: str, language: str) -> str:
    """Return plain text with the number words from 0 to 20, also English ones, as digits."""
    words: dict[str, int] = {}
    for key in ("en", language):
        words |= {word: value for value, word in enumerate(NUMBERS[key].split()) if word != "-"}
    pattern = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b", lambda match: str(words[match[0]]), text)


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, without list marks and without questions."""
    pieces = (re.sub(r"^\s*(?:[-•>]|\d{1,2}[.)])\s+", "", piece).strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if re.search(r"\w", piece) and not piece.endswith("?")]


def main_clause(sentence: str) -> str:
    """Return a sentence without its clause of reason."""
    leading = re.match(rf"{BECAUSE}\b[^,]*,(.*)", sentence)
    if leading:
        return leading[1]
    return re.split(rf"\b{BECAUSE}\b", sentence, maxsplit=1)[0] or sentence


def denied(text: str, position: int, reach: int = 3) -> bool:
    """Whether "not" or "instead of" occurs at most `reach` words before a position."""
    before = text[:position]
    return bool(re.search(rf"(?:\b{NOT}|{INSTEAD_OF})\W+(?:\w+\W+){{0,{reach}}}$", before))


def unfit(answer: str, most_words: int) -> str | None:
    """Return what is wrong with an answer regardless of the question, or None."""
    if not answer.strip():
        return "no answer"
    turn = _TURN.search(answer)
    if turn:
        return f"continues with an invented turn ({turn[0].strip()})"
    words = len(answer.split())
    if words > most_words:
        return f"too long: {words} words; at most {most_words} are needed"
    said = Counter(sentence for sentence in sentences(plain(answer)) if len(sentence.split()) >= 4)
    repeated = [sentence for sentence, count in said.items() if count >= 4]
    return f"repeats itself: {repeated[0][:40]}" if repeated else None


def language_of(text: str) -> str | None:
    """Return the language whose common words are most frequent in a text, or None if there are fewer than four."""
    words = Counter(re.findall(r"[a-z]+", plain(text)))
    counts = {language: sum(words[word] for word in stop_words.split()) for language, stop_words in _STOP_WORDS.items()}
    best = max(counts, key=lambda language: counts[language])
    return best if counts[best] >= 4 else None
