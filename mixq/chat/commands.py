"""The commands of the chat: which there are, and what a line means.

Contract: `understand` says whether a line is a command, or something to say to the model. This module does nothing and
knows no terminal; `mixq.chat.chat` carries commands out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixq.chat.saved_session import KEPT_SAMPLING
from mixq.config import did_you_mean
from mixq.engine.sampling import SamplingParams
from mixq.errors import UsageError, printable

QUOTES = '"""'


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its arguments and what it does, as /help shows them."""

    name: str
    arguments: str
    summary: str


COMMANDS = (
    Command("/help", "", "this list"),
    Command("/set", "[NAME [VALUE]]", "show or change sampling; the value default goes back"),
    Command("/system", "[TEXT]", 'show or change the system text; "-" removes it'),
    Command("/regen", "", "another reply to the last message"),
    Command("/edit", "", "change the last message, and have it answered anew"),
    Command("/save", "[-f] [NAME|FILE]", "keep the conversation; -f replaces another one"),
    Command("/load", "NAME|FILE", 'go on with a kept one; "/load -": the one before'),
    Command("/clear", "", "begin anew; the system text stays"),
    Command("/stats", "", "figures of the last reply and of the model"),
    Command("/experts", "", "which experts of which layer wrote the last reply"),
    Command("/model", "[NAME|FOLDER]", "show the models, or go on with another one"),
    Command("/exit", "", "leave; so does Ctrl-D"),
)
ALIASES = {"/quit": "/exit", "/bye": "/exit", "/?": "/help", "/h": "/help"}
KEYS = (
    ("//TEXT", "say something that begins with a slash"),
    ('"""', "begins and ends a message of several lines"),
    ("Alt-Enter", "begins a new line; pasted text keeps its lines"),
    ("Ctrl-C", "stops a reply, which stays; twice at the prompt leaves"),
    ("Ctrl-X Ctrl-E", "writes the message in your editor"),
)

# "/usr/bin/env" is something to talk about, no command.
_COMMAND = re.compile(r"\s*(/[A-Za-z?]*)(?:\s+(.*))?\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Order:
    """A command and what stood behind it."""

    name: str
    argument: str


def understand(line: str) -> Order | str | None:
    """Return a command, the text to say to the model, or None where there is nothing to do.

    Raises:
        UsageError: there is no such command.
    """
    text = unquoted(line)
    if text != line:
        return text if text.strip() else None
    if not line.strip():
        return None
    if line.lstrip().startswith("//"):
        return line.lstrip()[1:]
    found = _COMMAND.fullmatch(line)
    if not found:
        return line
    name = ALIASES.get(found[1].lower(), found[1].lower())
    if name not in (command.name for command in COMMANDS):
        close = did_you_mean(name, (command.name for command in COMMANDS))
        raise UsageError(
            f"There is no command {printable(found[1], 40)}.{close}",
            hint=f"/help lists them; to say this to the model, write /{printable(line.strip(), 40)}",
        )
    return Order(name, (found[2] or "").strip())


def is_open(text: str) -> bool:
    """Return whether a message in triple quotes is still without its end."""
    inner = text.strip()
    return inner.startswith(QUOTES) and (len(inner) < 2 * len(QUOTES) or not inner.endswith(QUOTES))


def unquoted(text: str) -> str:
    """Return a message without the triple quotes around it."""
    inner = text.strip()
    if inner.startswith(QUOTES) and not is_open(text):
        return inner[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def setting_name(word: str) -> str:
    """Return the sampling parameter that a word names.

    Raises:
        UsageError: there is none of this name.
    """
    name = word.lower().replace("-", "_")
    if name not in KEPT_SAMPLING:
        raise UsageError(
            f"There is no setting {printable(word, 40)}.{did_you_mean(name, KEPT_SAMPLING)}", hint="/set lists them."
        )
    return name


def setting_value(name: str, text: str) -> Any:
    """Return the value of a sampling parameter, checked; None means none.

    Raises:
        UsageError: not a value that it can have.
    """
    value: Any
    if name == "stop":
        value = () if text == "none" else (text.replace("\\n", "\n"),)
    elif text == "none" and name in ("seed", "max_tokens"):
        value = None
    else:
        try:
            value = int(text)
        except ValueError:
            try:
                value = float(text)
            except ValueError:
                raise UsageError(f"{name} is {printable(repr(text), 40)}; it must be a number.") from None
    SamplingParams.from_kwargs(**{name: value})
    return value


def settings(sampling: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every sampling parameter and its value."""
    params = SamplingParams.from_kwargs(**sampling)
    shown = []
    for name in KEPT_SAMPLING:
        value = getattr(params, name)
        words = {"seed": "a new one each time", "max_tokens": "up to the end of the context", "stop": "none"}
        text = words[name] if value in (None, ()) else ", ".join(map(repr, value)) if name == "stop" else f"{value}"
        shown.append((name, printable(text)))
    return shown


def nothing_behind(name: str, argument: str) -> None:
    """Refuse an argument where a command takes none."""
    if argument:
        raise UsageError(f"{name} takes nothing behind it.")
