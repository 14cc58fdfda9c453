"""The chat's commands, and how a typed line is understood.

Contract: `understand` distinguishes commands from messages to the model. This module only parses; `mixq.chat.chat` runs
the commands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixq.chat.saved_session import KEPT_SAMPLING
from mixq.engine.sampling import SamplingParams
from mixq.errors import UsageError, did_you_mean, printable

QUOTES = '"""'


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its arguments and what it does, as /help shows them."""

    name: str
    arguments: str
    summary: str


COMMANDS = (
    Command("/help", "[COMMAND]", "this list"),
    Command("/set", "[NAME [VALUE]]", 'show or change sampling; the value "default" resets it'),
    Command("/system", "[TEXT]", 'show or change the system prompt; "-" removes it'),
    Command("/regen", "", "generate another reply to the last message"),
    Command("/edit", "", "edit the last message and generate a new reply"),
    Command("/save", "[-f] [NAME|FILE]", "save the conversation; -f overwrites a file"),
    Command("/load", "NAME|FILE", 'continue a saved one; "/load -": the previous one'),
    Command("/clear", "", "start a new conversation with the same system prompt"),
    Command("/stats", "", "show statistics of the last reply and of the model"),
    Command("/experts", "", "show the experts that each layer used in the last reply"),
    Command("/model", "[NAME|FOLDER]", "list the models, or continue with another one"),
    Command("/exit", "", "leave; so does Ctrl-D"),
)
ALIASES = {"/quit": "/exit", "/bye": "/exit", "/?": "/help", "/h": "/help"}
KEYS = (
    ("//TEXT", "sends a message that starts with a slash"),
    ('"""', "starts and ends a message of several lines"),
    ("Alt-Enter", "starts a new line; pasted text keeps its line breaks"),
    ("Ctrl-C", "stops a reply and keeps what has arrived; pressed twice at the prompt, leaves"),
    ("Ctrl-X Ctrl-E", "opens the message in your editor"),
)

# "/usr/bin/env" is part of a message, not a command.
_COMMAND = re.compile(r"\s*(/[A-Za-z?]*)(?:\s+(.*))?\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Order:
    """A command and its argument."""

    name: str
    argument: str


def understand(line: str) -> Order | str | None:
    """Return a command, the text to send to the model, or None for an empty line.

    Raises:
        UsageError: an unknown command, or an argument for a command that takes none.
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
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        close = did_you_mean(name, (command.name for command in COMMANDS))
        raise UsageError(
            f"Unknown command {printable(found[1], 40)}.{close}",
            hint=f"/help lists the commands. To send this to the model, type /{printable(line.strip(), 40)}",
        )
    argument = (found[2] or "").strip()
    if argument and not command.arguments:
        raise UsageError(f"{name} takes no argument.")
    return Order(name, argument)


def is_open(text: str) -> bool:
    """Return whether a message in triple quotes is still open."""
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
        UsageError: an unknown name.
    """
    name = word.lower().replace("-", "_")
    if name not in KEPT_SAMPLING:
        raise UsageError(
            f"Unknown setting {printable(word, 40)}.{did_you_mean(name, KEPT_SAMPLING)}",
            hint="/set lists the settings.",
        )
    return name


def setting_value(name: str, text: str) -> Any:
    """Return the checked value of a sampling parameter; None for "none".

    Raises:
        UsageError: the parameter cannot have this value.
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
        words = {"seed": "random", "max_tokens": "until the context is full", "stop": "none"}
        text = words[name] if value in (None, ()) else ", ".join(map(repr, value)) if name == "stop" else f"{value}"
        shown.append((name, printable(text)))
    return shown
