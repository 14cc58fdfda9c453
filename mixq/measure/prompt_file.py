"""Prompts from a file, and a small built-in set.

Contract: a file has one prompt per line, or JSON lines: {"prompt": TEXT} or {"messages": [{"role": ..., "content":
...}]} as in OpenAI's API, each with an optional "name". Blank lines are skipped; an error names its line."""

from __future__ import annotations

from dataclasses import dataclass

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
    return [NamedPrompt(name, text) for name, text in _BUILT_IN]


_BUILT_IN = (
    ("English: story", "Write the first paragraph of a story about a lighthouse keeper who finds a letter."),
    ("English: science", "Explain in a few sentences why the sky is blue and the sunset is red."),
    ("English: advice", "How do I get better at sleeping when I travel across time zones?"),
    ("English: arithmetic", "What is 25 - (4 * 2) + 3? Show each step."),
    ("French: histoire", "Raconte en quelques phrases l'histoire d'un boulanger qui perd la recette de son pain."),
    ("French: question", "Pourquoi les feuilles des arbres changent-elles de couleur en automne ?"),
    ("German: Erklärung", "Erkläre in einfachen Worten, wie ein Kühlschrank funktioniert."),
    ("German: Brief", "Schreibe einen kurzen Brief an die Nachbarn: am Samstag gibt es ein Fest im Hof."),
    ("Spanish: receta", "Dame una receta sencilla de tortilla de patatas para cuatro personas."),
    ("Italian: viaggio", "Descrivi una passeggiata di un giorno a Roma, dal mattino alla sera."),
    ("Chinese", "请用几句话介绍一下长城的历史。"),
    ("Code: Python", "Write a Python function that returns the longest palindrome in a string, with a test."),
    ("Code: C", "Write a C function that reverses a singly linked list in place."),
    ("Code: SQL", "Write a SQL query for the three best paid employees of each department."),
    ("Code: bug", "What is wrong here?\n\nfor i in range(len(items)):\n    if not items[i]:\n        del items[i]"),
    ("Table", "List five European rivers as a Markdown table with their length in kilometres."),
)
