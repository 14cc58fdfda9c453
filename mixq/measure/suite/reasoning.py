"""Checks of the riddles about time, order and number: shirts, who is faster, killers.

Contract: the conclusion is judged, not the wording: claims are collected in order, and the last one decides, so that
steps towards the answer and corrections do no harm. Repetitions of the riddle, reasons, and other cases ("in batches
...") are not claims.
"""

from __future__ import annotations

import re

from mixq.measure.suite.reading import NOT, RIGHT, Verdict, denied, main_clause, plain, sentences, with_digits, wrong

_HOURS = re.compile(r"(\d+(?:[.,]\d+)?)[ -]*(hours?|hrs?|h|heures?|stunden?|std|horas?|or[ae]|min\w*)\b")
_IN_TURN = re.compile(
    r"at a time|batch|rounds?\b|\b1 (?:after|by)\b|in groups?|sequen|limited|not enough"
    r"|only (?:has |have )?(?:room|space)"
    r"|a la fois|l'une apres|par lots?|fournees?|par groupes?|manque|pas assez|limite"
    r"|nacheinander|jeweils|in gruppen|portion|durchg[ao]ng|nicht genug|begrenzt|zu wenig"
    r"|a la vez|una tras|tandas?|lotes?|grupos|limitad|no hay (?:suficiente )?espacio"
    r"|alla volta|una dopo|lotti|gruppi|limitat|non c'e (?:abbastanza )?spazio"
)
_MISTAKEN = re.compile(
    r"tempted|might (?:think|say)|mistake|would be wrong|pourrait (?:penser|croire)|konnte (?:man )?(?:denken|meinen)"
    r"|podria (?:pensar|parecer)|potrebbe (?:pensare|sembrare)"
)
_ALIKE = re.compile(
    r"(?<!at the )same (?:amount of )?time|as long|no longer than|(?<!en )meme (?:temps|duree)|aussi longtemps|autant"
    r"|gleich lang|genauso lang|ebenso lang|(?<!zur )gleichen? zeit|(?<!al )mismo tiempo|lo mismo"
    r"|(?<!allo )stesso tempo|altrettanto"
)
_BUT = re.compile(r"[;:]|\b(?:but|however|whereas|mais|cependant|aber|jedoch|pero|sin embargo|ma|tuttavia)\b")


def shirts(answer: str, language: str) -> Verdict:
    """Right is 4 hours: shirts dry side by side."""
    text = with_digits(plain(answer), language)
    claims: list[float] = []
    alike = False
    for sentence in sentences(text):
        for clause in _BUT.split(main_clause(sentence)):
            if _IN_TURN.search(clause) or _MISTAKEN.search(clause):
                continue
            alike = alike or bool(_ALIKE.search(clause))
            if re.search(r"\b5\b", clause) and not re.search(r"\b20\b|[=:]", clause):
                continue  # repeats the riddle
            if re.search(r"[x×*]|multipl", clause) and "=" not in clause:
                continue
            found = [match for match in _HOURS.finditer(clause) if not denied(clause, match.start())]
            if found:
                hours = float(found[-1][1].replace(",", "."))
                claims.append(hours / 60 if found[-1][2].startswith("min") else hours)
    if claims:
        return RIGHT if claims[-1] == 4 else wrong(f"says {claims[-1]:g} hours; it is 4")
    return RIGHT if alike else wrong("gives no time for 20 shirts")


_FAST = r"(?:faster|quicker|plus (?:rapide|vite)|schneller|mas (?:rapid[oa]|veloz)|piu (?:veloc[ei]|rapid[oa]))"
_SLOW = (
    r"(?:slower|less fast|plus lent[e]?|moins (?:rapide|vite)|langsamer|mas lent[oa]|menos (?:rapid[oa]|veloz)"
    r"|piu lent[oa]|meno (?:veloc[ei]|rapid[oa]))"
)
_COMPARED = re.compile(
    rf"\b(?P<who>sam|jane)\b(?P<between>(?:(?!\b(?:sam|jane|joe)\b)[^.;!?\n]){{0,40}}?)"
    rf"\b(?:(?P<fast>{_FAST})|(?P<slow>{_SLOW}))\b"
    r"(?:(?!\b(?:sam|jane|joe)\b)[^.;!?\n]){0,16}?\b(?P<whom>sam|jane)\b"
)
_WHETHER = re.compile(r"\b(?:if|whether|ob|wenn|si|se)\b[^,]*$")
_UNDECIDED = re.compile(
    r"(?:cannot|can't|not possible|impossible|unable) (?:to )?(?:be )?(?:determin|tell|say|know)|not enough information"
    r"|impossible de|pas assez d'information|nicht (?:bestimm|sagen)|nicht genug|no se puede|falta informacion"
    r"|non (?:si puo|e possibile)|informazioni insufficienti"
)
_YES, _NO = r"(?:yes|oui|ja|si)", r"(?:no|non|nein)"


def faster(answer: str, language: str) -> Verdict:
    """Right is no: Jane, then Joe, then Sam."""
    text = plain(answer)
    if _UNDECIDED.search(text):
        return wrong("says that it cannot be decided")
    opening = re.match(rf"\W*(?:(?P<yes>{_YES})|(?P<no>{_NO}))(?=\W*(?:[,.!:;\n]|$))", text)
    claims: list[bool] = []  # is Sam faster?
    for sentence in sentences(text):
        for match in _COMPARED.finditer(sentence):
            if match["who"] == match["whom"] or _WHETHER.search(sentence[: match.start()]):
                continue
            negated = bool(re.search(rf"\b{NOT}\b", match["between"]))
            claims.append((match["who"] == "sam") == ((match["fast"] is not None) != negated))
        if re.search(
            r"\bsam\b[^.]{0,20}\b(?:slowest|langsamste|plus lent|mas lento|piu lento)\b(?! que| di| als)", sentence
        ):
            claims.append(False)
        if re.search(r"\bsam\b[^.]{0,20}\b(?:fastest|schnellste)\b", sentence):
            claims.append(True)
    if not claims:
        so = re.search(
            rf"\b(?:answer|so|therefore|reponse|donc|antwort|also|respuesta|risposta|quindi)\b\W+(?:\w+\W+){{0,3}}?{_NO}\b",
            text,
        )
        if (opening and opening["no"]) or so:
            return RIGHT
        return wrong("says yes" if opening else "no clear yes or no")
    if claims[-1]:
        return wrong("says that Sam is faster")
    return wrong("says yes, and then the opposite") if opening and opening["yes"] else RIGHT


_KILLER = r"(?:killers?|murderers?|assassins?|tueurs?|meurtriers?|mordern?|asesinos?|assassin[io]|sicari[o]?s?)"
_COUNTED = re.compile(rf"\b(\d+)\s+(?:[\w']+\s+){{0,2}}?{_KILLER}\b")
_LEFT = re.compile(
    r"(?:\b(?:left|remain\w*|answer|result|total|therefore|so|thus|makes?|making|ubrig|bleib\w*|antwort|insgesamt|also"
    r"|reste\w*|reponse|donc|quedan|respuesta|por lo tanto|rimang\w*|restano|risposta|quindi|totale)\b|=)"
    r"\W+(?:[\w']+\W+){0,3}?(\d+)\b"
)
_AT_FIRST = re.compile(
    r"\b(?:initial\w*|at first|original(?:ly)? (?:there )?(?:were|had)|at the (?:start|beginning)|to begin|start\w*"
    r"|were|was|au (?:depart|debut)|etai\w+|avait|zu beginn|am anfang|anfangs|anfanglich|ursprunglich|waren|gab"
    r"|in (?:a|einem) (?:room|zimmer|raum)|dans une piece|en una habitacion|in una stanza"
    r"|al (?:principio|inicio)|habia|eran|all'inizio|c'erano|erano|inizialmente)\b"
)
_DEAD = re.compile(
    r"\b(?:dead|dies?|died|kill(?:s|ed)|mort\w*|tue\w?|meurt|tot\w*|getotet|stirbt|muert\w*|muere|matad\w|mata|mato"
    r"|uccis\w|uccide|muore)\b"
)
_ALIVE = re.compile(r"\b3\s+(?:[\w']+\s+){0,2}?(?:alive|living|vivants?|en vie|leben\w*|vivos|con vida|viv[io])\b")


def killers(answer: str, language: str) -> Verdict:
    """Right is three: two of the first three, and the one who came in and killed."""
    text = with_digits(plain(answer), language)
    claims: list[int] = []
    for sentence in sentences(text):
        main = main_clause(sentence)
        if _AT_FIRST.search(main):
            continue
        alone = re.fullmatch(r"\W*(\d+)\W*", main)
        if alone:
            claims.append(int(alone[1]))
            continue
        if "=" in main:
            sums = re.findall(r"=\s*(\d+)", main)
            claims += [int(sums[-1])] if sums else []
            continue
        head, colon, _ = main.partition(":")
        if colon and re.search(r"\d", head):
            main = head
        counted = [int(m[1]) for m in _COUNTED.finditer(main) if not denied(main, m.start(), 1)]
        if _DEAD.search(main):
            counted = [number for number in counted if number != 1]
        left = [int(m[1]) for m in _LEFT.finditer(main) if not denied(main, m.start(1), 1)]
        making = re.search(r"\b(?:making|total\w*|insgesamt|altogether)\W+(?:\w+\W+){0,4}?(\d+)\b", main)
        if making:
            claims.append(int(making[1]))
        elif counted or left:
            claims.append((counted or left)[0])
    if not claims:
        return wrong("gives no number of killers")
    if claims[-1] == 3 or (claims[-1] == 4 and _ALIVE.search(text)):
        return RIGHT
    return wrong(f"says {claims[-1]}; it is 3")
