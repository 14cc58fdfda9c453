"""Checks of the riddles about places: the marble under the cup, and where John and Mark think the ball is.

Contract: as in `reasoning`. A clause is about the last marble or cup named before the place.
"""

from __future__ import annotations

import re

from mixq.measure.suite.reading import NOT, RIGHT, Verdict, denied, main_clause, plain, sentences, wrong

_MARBLE = r"(?:marble|ball|bille|boule|murmel|kugel|canica|bola|bolita|biglia|pallina)"
_CUP = r"(?:cup|tasse|becher|gobelet|taza|vaso|tazza|bicchiere)"
_MICROWAVE = r"(?:microwave|mikrowelle\w*|micro-?ondes?|microonde)"
_TABLE = r"(?:table|tisch\w*|tischplatte|mesa|tavolo)"
_INSIDE = (
    r"(?:in|inside|into|within|under|underneath|beneath|dans|interieur|sous|im|ins|innerhalb|darin|unter|unterhalb|en"
    r"|dentro|interior|debajo|bajo|nel|nella|nell|all'interno|interno|sotto)"
)
_FREE = r"(?:out|off|from|outside|leaves?|hors|sort\w*|aus|heraus|fuera|sale|fuori|esce|dal|dalla)"
_WAS = r"\b(?:was|were|had|etait|war|lag|befand|estaba|habia|era)\b"
_PUT = r"\b(?:put|places?|placed|mise?|met|pose\w*|gelegt|legt|gestellt|pone|puesta|coloca\w*|mess[ao]|mette|posat\w)\b"
_PLACE = re.compile(rf"\b(?:(?P<table>{_TABLE})|(?P<cup>{_CUP})|(?P<microwave>{_MICROWAVE}))\b")
_SUBJECT = re.compile(rf"\b(?:(?P<marble>{_MARBLE})|(?P<cup>{_CUP}))\b")
_CLAUSE = re.compile(
    r"[,;:()\n]|\b(?:but|and|while|whereas|so|because|as|mais|et|tandis que|car|aber|und|wahrend|weil|pero|y|mientras"
    r"|ma|e|mentre|perche)\b"
)
_NOW = re.compile(
    r"\b(?:now|so|therefore|thus|hence|answer|conclusion|still|maintenant|donc|reponse|toujours|jetzt|nun|daher|also"
    r"|antwort|immer noch|ahora|por lo tanto|respuesta|sigue|asi que|adesso|ora|quindi|risposta|ancora)\b"
)


def marble(answer: str, language: str) -> Verdict:
    """Right is on the table: the upside-down cup is open at the bottom."""
    claims: list[tuple[bool, bool]] = []  # on the table, in a sentence that concludes
    about_marble = True  # an answer without a subject is about what was asked for
    for sentence in sentences(plain(answer)):
        for clause in _CLAUSE.split(main_clause(sentence)):
            subjects = [match for match in _SUBJECT.finditer(clause) if not _after_preposition(clause, match.start())]
            claim = _where(clause, subjects, about_marble)
            if claim is not None:
                claims.append((claim, bool(_NOW.search(sentence))))
            if subjects:
                about_marble = subjects[-1]["marble"] is not None
    if not claims:
        return wrong("does not say where the marble is")
    concluding = [on_table for on_table, concludes in claims if concludes]
    on_table = (concluding or [claim for claim, _ in claims])[-1]
    return RIGHT if on_table else wrong("leaves the marble in the cup")


def _where(clause: str, subjects: list[re.Match[str]], about_marble: bool) -> bool | None:
    """Return True if a clause puts the marble on the table, False for the cup or microwave, None for neither."""
    inside = on_table = False
    for match in _PLACE.finditer(clause):
        before = clause[: match.start()]
        owners = [subject for subject in subjects if subject.end() <= match.start()]
        if not (owners[-1]["marble"] is not None if owners else about_marble):
            continue
        near = re.search(r"(?:[\w'-]+\W+){0,4}$", before)
        words = near[0] if near else ""
        if not words.strip() or denied(clause, match.start()) or re.search(rf"\b{_FREE}\b", words):
            continue
        if match["table"]:
            on_table = True
        elif re.search(rf"\b{_INSIDE}\b|\bdell?'?\s?(?:interno|interieur)", words):
            if re.search(_WAS, before) or (match["cup"] and re.search(_PUT, before)):
                continue
            inside = True
    return False if inside else True if on_table else None


def _after_preposition(clause: str, position: int) -> bool:
    """Whether a preposition governs the word at a position, so that it is not the subject."""
    prepositions = (
        rf"(?:{_INSIDE}|{_FREE}|on|of|with|over|around|sur|avec|de|du|auf|mit|von|uber|sobre|con|del|su|sul|di|della)"
    )
    return bool(re.search(rf"\b{prepositions}\W+(?:[\w']+\W+){{0,2}}$", clause[:position]))


_BOX = r"(?:box|boite|kiste|schachtel|karton|caja|scatola)"
_BASKET = r"(?:basket|panier|korb|cest[aoi]\w*|canasta)"
_BELIEVE = (
    r"(?:think|believ|expect|assum|suppos|know|look|search|says?|pens|croi|suppos|sait|cherch|denk|glaub|mein|vermut|weiss"
    r"|erwart|such|cree|supon|piens|sabe|busc|cred|ritien|suppon|sa\b|cerch)\w*"
)
_BOTH = r"\b(?:both|they|tous (?:les )?deux|ils|beide|ambos|los dos|entrambi)\b"


def ball(answer: str, language: str) -> Verdict:
    """Right is that John thinks the ball is in the box, and Mark in the basket."""
    thinks: dict[str, str] = {}
    who = ""
    for sentence in sentences(plain(answer)):
        believing = False
        for piece in re.split(r"\b(?=john\b|mark\b)", sentence):
            name = re.match(r"john|mark", piece)
            who = name[0] if name else who
            believed = re.search(rf"\b{_BELIEVE}", piece)
            if believed:
                denies = _is_denied_belief(piece, believed)
                believing = believing or not denies
                place = None if denies else _first_place(piece[believed.end() :])
                if place and not name and re.search(_BOTH, piece[: believed.start()]):
                    thinks = {"john": place, "mark": place}
                    continue
            elif name and re.match(r"(?:john|mark)\W*[:=(>-]", piece):
                place = _first_place(piece)
            else:
                place = _last_place(piece) if believing else None
            if place and who:
                thinks[who] = place
    for person, wanted in (("john", "box"), ("mark", "basket")):
        found = thinks.get(person)
        if found is None:
            return wrong(f"does not say where {person.title()} thinks the ball is; it is the {wanted}")
        if found != wanted:
            return wrong(f"says that {person.title()} thinks the ball is in the {found}; it is the {wanted}")
    return RIGHT


def _is_denied_belief(piece: str, believed: re.Match[str]) -> bool:
    """Whether a verb of belief is negated, before or after it: "does not know", "glaubt nicht"."""
    before, after = piece[: believed.start()], piece[believed.end() :]
    return denied(before, len(before), 1) or bool(re.match(rf"\W+{NOT}\b", after))


def _places(text: str) -> list[str]:
    found = re.finditer(rf"\b(?:(?P<box>{_BOX})|(?P<basket>{_BASKET}))\b", text)
    return ["box" if match["box"] else "basket" for match in found if not denied(text, match.start())]


def _first_place(text: str) -> str | None:
    return next(iter(_places(text)), None)


def _last_place(text: str) -> str | None:
    return next(reversed(_places(text)), None)
