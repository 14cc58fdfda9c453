"""Prompts from a file, and a small built-in set.

Contract: a file has one prompt per line, or JSON lines: {"prompt": TEXT} or {"messages": [{"role": ..., "content":
...}]} as in OpenAI's API, each with an optional "name". Blank lines are skipped; an error names its line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixq.errors import Fields, ModelFileError, PromptError, UsageError, printable
from mixq.formats.json_file import parse_json_object
from mixq.text.chat_template import Message

MOST = 100_000
LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """Either a text to continue or answer, or a conversation to continue."""

    name: str
    text: str = ""
    messages: tuple[Message, ...] = ()


def parse_prompts(text: str, where: str) -> list[NamedPrompt]:
    """Return the prompts of a file's text.

    Args:
        where: the file's name, for messages.

    Raises:
        PromptError: the file has no prompt, or an invalid line.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise PromptError(f"{printable(where)} has no prompt.", hint="Write one prompt per line.")
    if len(lines) > MOST:
        raise PromptError(f"{printable(where)} has {len(lines):,} prompts; at most {MOST:,} are run.")
    if lines[0][1].startswith("{"):
        return [_parsed(line, number, f"{where}, line {number}") for number, line in lines]
    return [NamedPrompt(_short(line), line) for _, line in lines]


def _parsed(line: str, number: int, where: str) -> NamedPrompt:
    try:
        entry = parse_json_object(line.encode(), where)
    except ModelFileError as error:
        raise PromptError(error.message, hint="Write all lines as JSON objects, or none.") from error
    fields = Fields(entry, f"{printable(where)}: ", PromptError)
    fields.only(("prompt", "messages", "name"))
    name = fields.text("name", default="")
    if ("prompt" in entry) == ("messages" in entry):
        raise PromptError(f"{printable(where)} must have either prompt or messages.")
    if "prompt" in entry:
        text = fields.text("prompt")
        if not text.strip():
            raise fields.wrong("prompt", "a string that is not blank")
        return NamedPrompt(_short(name or text), text)
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"{printable(where)}: messages must be a list of messages.")
    try:
        turns = tuple(Message.of(message) for message in messages)
    except UsageError as error:
        raise PromptError(f"{printable(where)}: {error.message}", hint=error.hint) from error
    return NamedPrompt(_short(name or turns[-1].content or f"line {number}"), messages=turns)


def _short(text: str) -> str:
    return printable(" ".join(text.split()), LONGEST_NAME)


def built_in() -> list[NamedPrompt]:
    """Return a small set: several languages, and code."""
    return parse_prompts(Path(__file__).with_name("prompts.jsonl").read_text("utf-8"), "prompts.jsonl")
