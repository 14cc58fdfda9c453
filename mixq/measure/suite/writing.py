"""Checks of texts and programs: the letter, the bullet points, the numbers, Snake.

Contract: what can be told from outside: the parts of a letter, the language, the number of points, whether a program
parses, uses what was asked for and prints what it should. Taste is not judged. Nothing is executed here.
"""

from __future__ import annotations

import ast
import builtins
import re

from mixq.measure.suite.code_blocks import parsed, python_code
from mixq.measure.suite.questions import LANGUAGES
from mixq.measure.suite.reading import RIGHT, Verdict, language_of, plain, wrong
from mixq.measure.suite.walk import NotUnderstood, printed

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
        return wrong(f"{words} words are no letter")
    written = language_of(answer)
    if written != language:
        return wrong(f"is in {LANGUAGES[written]}" if written else "is in no language that can be told")
    salutation = re.search(rf"(?m)^\W*(?:{_SALUTATION[language]})\b", text)
    if salutation is None:
        return wrong("no salutation")
    if not re.search(rf"\b(?:{_RESIGNS[language]})\b", text[salutation.end() :]):
        return wrong("resigns from nothing")
    if not re.search(rf"\b(?:{_CLOSING[language]})\b", text[len(text) // 2 :]):
        return wrong("no closing")
    return RIGHT


_BULLET = re.compile(r"^\s*(?:[-*•‣◦·–]|\d{1,2}[.)])\s+(.+)$")
_KEYS = ("1892", "1944", "1951", "2019", "30000", "300", "40", "clara", "arden")


def bullets(answer: str, language: str) -> Verdict:
    """Right are exactly three bullet points, each short, that together say what the text says."""
    lines = [line for line in answer.splitlines() if line.strip()]
    points = [match[1] for line in lines if (match := _BULLET.match(line))]
    if len(points) != 3:
        return wrong(f"{len(points)} bullet points instead of three")
    beside = sum(len(line.split()) for line in lines if not _BULLET.match(line))
    if beside > 30:
        return wrong(f"{beside} words beside the bullet points")
    long = next((point for point in points if len(point.split()) > 45), None)
    if long is not None:
        return wrong(f"a bullet point of {len(long.split())} words")
    written = language_of(" ".join(points))
    if written not in (language, None):
        return wrong(f"is in {LANGUAGES[written]}" if written else "")
    text = re.sub(r"(?<=\d)[.,\s'](?=\d{3}\b)", "", plain(" ".join(points)))
    said = [key for key in _KEYS if re.search(rf"\b{key}\b", text)]
    return RIGHT if len(said) >= 3 else wrong("leaves out nearly all of the text")


def numbers(answer: str, language: str) -> Verdict:
    """Right is a program that prints 1 to 100 and nothing else, as far as walking through it tells."""
    try:
        output = printed(python_code(answer))
    except SyntaxError as error:
        return wrong(f"the code does not parse: {error.msg} in line {error.lineno}")
    except LookupError:
        return wrong("no Python code")
    except NotUnderstood as reason:
        return wrong(f"not followed without running it: {reason}")
    return one_to_hundred(output)


def one_to_hundred(output: str) -> Verdict:
    """Right is 1 to 100 in order, between white space or commas; brackets of a list may stand around."""
    found = re.findall(r"[^\s,\[\]]+", output)
    if found == [str(number) for number in range(1, 101)]:
        return RIGHT
    if not found:
        return wrong("prints nothing")
    shown = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}, {len(found)} values"
    return wrong(f"prints {shown[:60]}")


_DRAWS = {"addch", "addstr", "addnstr", "insch", "border", "box"}


def snake(answer: str, language: str) -> Verdict:
    """Right is a program that parses, imports what it uses, and reads keys and draws with curses in a loop."""
    try:
        tree = parsed(python_code(answer))
    except SyntaxError as error:
        return wrong(f"the code does not parse: {error.msg} in line {error.lineno}")
    except LookupError:
        return wrong("no Python code")
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    if not any(name.split(".")[0] == "curses" for name in imported):
        return wrong("does not import curses")
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    called |= {
        node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    for what, names in (
        ("starts no curses screen", {"wrapper", "initscr"}),
        ("reads no keys", {"getch", "getkey", "get_wch"}),
        ("draws nothing", _DRAWS),
    ):
        if not called & names:
            return wrong(what)
    if not any(isinstance(node, ast.While) for node in ast.walk(tree)):
        return wrong("has no game loop")
    unknown = _unknown_names(tree)
    return wrong(f"uses {unknown[0]}, which is defined nowhere") if unknown else RIGHT


def _unknown_names(tree: ast.Module) -> list[str]:
    """Return the names that a program reads and nothing in it binds, in any scope."""
    bound, read = set(dir(builtins)) | {"__name__", "__file__"}, []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.append(name)
            case ast.Name(id=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                if name == "*":
                    return []
                bound.add(other or name.split(".")[0])
    return [name for name in read if name not in bound]
