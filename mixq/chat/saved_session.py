"""A conversation in a file: versioned JSON, written whole or not at all, readable by its owner alone.

    {"format": "mixq-session", "version": 1, "model": "...", "template": "...", "system": "...",
     "sampling": {...}, "messages": [{"role": "user", "content": "..."}, ...]}

Contract: a session file comes from anywhere. Its size is bounded before it is read, and everything in it is checked
before anything is used; text in it is never obeyed (whoever shows it makes it harmless). A file of a newer version is
refused as such. This module knows no model and no terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from mixq.engine.sampling import SamplingParams
from mixq.errors import ModelFileError, PromptError, StorageError, UsageError, is_integer, printable
from mixq.formats.atomic import atomic_write_json
from mixq.formats.json_file import read_json_object
from mixq.system import paths
from mixq.text.chat_template import Message

FORMAT = "mixq-session"
VERSION = 1
MAX_BYTES = 16 << 20
SUFFIX = ".json"
UNCHANGED = "The conversation is as it was before."

KEPT_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "stop",
)
"""Sampling parameters that a user sets and a session keeps."""


class SessionFileError(UsageError):
    """A session file that is missing, damaged, of a newer version, or no session at all."""


@dataclass(frozen=True, slots=True)
class SavedSession:
    """What a session file holds."""

    model: str
    template: str
    system: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Message] = ()


def folder() -> Path:
    """Return where sessions lie that were saved by name."""
    return paths.home() / "sessions"


def session_path(name: str) -> Path:
    """Return the file that `name` means: a path if it looks like one, else a session of mixq's data folder."""
    if name.endswith(SUFFIX) or {"/", os.sep, os.altsep or "/"} & set(name):
        return paths.expand(name)
    return folder() / f"{name}{SUFFIX}"


def names() -> list[str]:
    """Return the names of the sessions in mixq's data folder, the latest first."""
    try:
        found = [(path.stat().st_mtime, path.stem) for path in folder().glob(f"*{SUFFIX}")]
    except OSError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def save(path: Path, session: SavedSession) -> None:
    """Write a session; the file before it stays whole until the new one is.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    if path.parent == folder():
        make_private_folder(path.parent)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": session.model,
        "template": session.template,
        "system": session.system,
        "sampling": dict(session.sampling),
        "messages": [{"role": message.role, "content": message.content} for message in session.messages],
    }
    atomic_write_json(path, document, private=True)


def load(path: Path) -> SavedSession:
    """Return the session in a file.

    Raises:
        SessionFileError: no such file, too large, damaged, of a newer version, or not a session.
        StorageError: it cannot be read.
    """
    shown = printable(path)
    try:
        raw = read_json_object(path, MAX_BYTES)
    except ModelFileError as error:
        raise SessionFileError(error.message, hint="Tab behind /load lists the sessions there are.") from error
    return _checked(raw, shown)


def _checked(raw: Mapping[str, Any], shown: str) -> SavedSession:
    def bad(problem: str) -> SessionFileError:
        return SessionFileError(f"{shown} {problem}.", hint=UNCHANGED)

    if raw.get("format") != FORMAT:
        raise bad("is not a session of mixq")
    version = raw.get("version")
    if not is_integer(version, 1, inf):
        raise bad(f"has version {printable(repr(version), 40)}, which no mixq wrote")
    if version > VERSION:
        raise SessionFileError(
            f"{shown} was saved by a newer mixq (version {printable(version, 20)}; this one reads {VERSION}).",
            hint=f"Update mixq to load it. {UNCHANGED}",
        )
    texts: dict[str, str] = {}
    for key in ("model", "template", "system"):
        value = raw.get(key)
        if not isinstance(value, str) or not _is_text(value):
            raise bad(f"is damaged: {key} must be text")
        texts[key] = value
    sampling = raw.get("sampling")
    if not isinstance(sampling, dict):
        raise bad("is damaged: sampling must be an object")
    messages = raw.get("messages")
    if not isinstance(messages, list):
        raise bad("is damaged: messages must be a list")
    unknown = sorted(set(raw) - {"format", "version", "model", "template", "system", "sampling", "messages"})
    if unknown:
        raise bad(f"is damaged: it has the key {printable(repr(unknown[0]), 60)}")
    return SavedSession(
        texts["model"],
        texts["template"],
        texts["system"],
        _sampling(sampling, bad),
        tuple(_messages(messages, bad)),
    )


def _sampling(raw: Mapping[str, Any], bad: Callable[[str], SessionFileError]) -> dict[str, Any]:
    for key in raw:
        if key not in KEPT_SAMPLING:
            raise bad(f"is damaged: sampling has {printable(repr(key), 60)}")
    sampling = dict(raw)
    if "stop" in sampling:
        stop = sampling["stop"]
        if not isinstance(stop, list) or not all(isinstance(text, str) and _is_text(text) for text in stop):
            raise bad("is damaged: stop must be a list of texts")
        sampling["stop"] = tuple(stop)
    try:
        SamplingParams.from_kwargs(**sampling)
    except UsageError as error:
        raise bad(f"is damaged: {error.message.rstrip('.')}") from error
    return sampling


def _messages(messages: Sequence[Any], bad: Callable[[str], SessionFileError]) -> list[Message]:
    checked: list[Message] = []
    for number, raw in enumerate(messages, 1):
        try:
            message = Message.of(raw)
        except (PromptError, UsageError) as error:
            raise bad(f"is damaged: message {number}: {error.message.rstrip('.')}") from error
        wanted = "user" if number % 2 else "assistant"
        if message.role != wanted:
            raise bad(f"is damaged: message {number} is from {message.role}; user and assistant take turns")
        if not message.content.strip() or not _is_text(message.content):
            raise bad(f"is damaged: message {number} is {'no text' if message.content.strip() else 'empty'}")
        checked.append(message)
    if len(checked) % 2:
        raise bad("is damaged: the last message has no reply")
    return checked


def _is_text(text: str) -> bool:
    """Return whether every character is one: JSON can name halves of them."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, if it is not there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be made: {printable(error.strerror or error)}.") from error
