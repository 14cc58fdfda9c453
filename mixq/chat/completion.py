"""What Tab offers: commands, their arguments, files and model names.

Contract: `candidates` is a function of the text before the cursor; it reads folders, changes nothing, and a folder that
cannot be read offers nothing. The completer only passes the candidates on to prompt_toolkit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mixq.chat import saved_session
from mixq.chat.commands import COMMANDS
from mixq.chat.safe_text import harmless
from mixq.system import paths

MOST = 200
"""Entries of a folder that are offered at most."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that Tab can put in place of the word before the cursor."""

    text: str
    about: str = ""


def candidates(text: str, model_names: Callable[[], Iterable[str]]) -> tuple[str, list[Candidate]]:
    """Return the word before the cursor, and what may replace it."""
    if not text.startswith("/") or "\n" in text:
        return "", []
    name, space, argument = text.partition(" ")
    if not space:
        return name, [Candidate(c.name, c.summary) for c in COMMANDS if c.name.startswith(name)]
    if name == "/help":
        return argument, []
    if name == "/set":
        return _setting(argument)
    if name in ("/save", "/load"):
        word = argument.removeprefix("-f ")
        saved = [Candidate(each) for each in saved_session.names() if each.startswith(word)]
        return word, [*saved, *_files(word, folders_only=False)]
    if name == "/model":
        named = [Candidate(each) for each in model_names() if each.startswith(argument)]
        return argument, [*named, *_files(argument, folders_only=True)]
    return argument, []


def _setting(argument: str) -> tuple[str, list[Candidate]]:
    name, space, value = argument.partition(" ")
    if not space:
        return name, [Candidate(each) for each in saved_session.KEPT_SAMPLING if each.startswith(name)]
    words = ["default", *(["none"] if name in ("seed", "max_tokens", "stop") else [])]
    return value, [Candidate(word) for word in words if word.startswith(value)]


def _files(word: str, *, folders_only: bool) -> list[Candidate]:
    """Return entries of the folder that a path begins with; hidden ones only after a typed dot."""
    head, tail = os.path.split(word)
    found = []
    try:
        with os.scandir(paths.expand(head) if head else Path()) as entries:
            for entry in entries:
                is_folder = entry.is_dir()
                wanted = is_folder or (not folders_only and entry.name.endswith(saved_session.SUFFIX))
                hidden = entry.name.startswith(".") and not tail.startswith(".")
                if wanted and not hidden and entry.name.startswith(tail) and entry.name.isprintable():
                    found.append(Candidate(os.path.join(head, entry.name) + ("/" if is_folder else "")))
    except OSError:
        return []
    return sorted(found, key=lambda candidate: candidate.text)[:MOST]


class ChatCompleter(Completer):
    """Offers the candidates at the prompt.

    Args:
        model_names: of the models in the store.
    """

    def __init__(self, model_names: Callable[[], Iterable[str]]) -> None:
        self._model_names = model_names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what Tab offers here."""
        word, found = candidates(document.text_before_cursor, self._model_names)
        for candidate in found:
            yield Completion(candidate.text, -len(word), display=harmless(candidate.text), display_meta=candidate.about)
