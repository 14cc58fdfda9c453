"""Tab completion: commands, their arguments, files and model names.

Contract: `candidates` depends only on the text before the cursor and the contents of folders; a folder that cannot be
read has no candidates.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mixq.chat import saved_session
from mixq.chat.commands import COMMANDS
from mixq.chat.safe_text import harmless
from mixq.formats import store
from mixq.system import paths

MOST = 200
"""Most entries of a folder that are offered."""


def candidates(text: str) -> tuple[str, list[str]]:
    """Return the word before the cursor, and what may replace it."""
    if not text.startswith("/") or "\n" in text:
        return "", []
    name, space, argument = text.partition(" ")
    if not space:
        return name, _beginning(name, (command.name for command in COMMANDS))
    if name == "/set":
        return _setting(argument)
    if name in ("/save", "/load"):
        word = argument.removeprefix("-f ")
        return word, [*_beginning(word, saved_session.names()), *_files(word, folders_only=False)]
    if name == "/model":
        return argument, [*_beginning(argument, store.names()), *_files(argument, folders_only=True)]
    return argument, []


def _beginning(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _setting(argument: str) -> tuple[str, list[str]]:
    name, space, value = argument.partition(" ")
    if not space:
        return name, _beginning(name, saved_session.KEPT_SAMPLING)
    words = ["default", *(["none"] if name in ("seed", "max_tokens", "stop") else [])]
    return value, _beginning(value, words)


def _files(word: str, *, folders_only: bool) -> list[str]:
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
                    found.append(os.path.join(head, entry.name) + ("/" if is_folder else ""))
    except OSError:
        return []
    return sorted(found)[:MOST]


class ChatCompleter(Completer):
    """Offers the candidates at the prompt."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what Tab offers here."""
        word, found = candidates(document.text_before_cursor)
        about = {command.name: command.summary for command in COMMANDS}
        for text in found:
            yield Completion(text, -len(word), display=harmless(text), display_meta=about.get(text, ""))
