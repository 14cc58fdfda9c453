"""A conversation in a file: versioned JSON, written atomically, readable only by its owner.

    {"format": "mixq-session", "version": 1, "model": "...", "template": "...", "system": "...",
     "sampling": {...}, "messages": [{"role": "user", "content": "..."}, ...]}

Contract: a session file may come from anywhere. Its size is bounded before it is read, and everything in it is checked
before anything is used; its text may contain control characters, which `safe_text` escapes when it is shown. A
file of a newer version is refused with a message about that.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixq.engine.sampling import SamplingParams
from mixq.errors import Fields, ModelFileError, PromptError, StorageError, UsageError, printable
from mixq.formats.atomic import atomic_write_json
from mixq.formats.json_file import read_json_object
from mixq.system import paths
from mixq.text.chat_template import Message

FORMAT = "mixq-session"
VERSION = 1
MAX_BYTES = 16 << 20
SUFFIX = ".json"
UNCHANGED = "The conversation is unchanged."

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
    """A session file that is missing, damaged, of a newer version, or not a session."""


@dataclass(frozen=True, slots=True)
class SavedSession:
    """What a session file holds."""

    model: str
    template: str
    system: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Message] = ()


def folder() -> Path:
    """Return the folder of sessions that were saved by name."""
    return paths.home() / "sessions"


def session_path(name: str) -> Path:
    """Return the file for `name`: a path if it looks like one, else a session in mixq's data folder."""
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
    """Write a session; an existing file is replaced only by the complete new one.

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
    try:
        raw = read_json_object(path, MAX_BYTES)
    except ModelFileError as error:
        raise SessionFileError(error.message, hint="Press Tab after /load to list the saved sessions.") from error
    shown, version = printable(path), raw.get("version")
    if raw.get("format") != FORMAT:
        raise _damaged(f"{shown} is not a mixq session.")
    if isinstance(version, int) and version > VERSION:
        raise SessionFileError(
            f"{shown} was saved by a newer mixq (version {printable(version, 20)}; this one reads {VERSION}).",
            hint=f"Update mixq to load it. {UNCHANGED}",
        )
    fields = Fields(raw, f"{shown}: ", _damaged)
    fields.one_of("version", [VERSION])
    fields.only(("format", "version", "model", "template", "system", "sampling", "messages"))
    if re.search("[\ud800-\udfff]", json.dumps(raw, ensure_ascii=False)):  # JSON escapes can be lone surrogates
        raise _damaged(f"{shown} contains text that is not valid Unicode.")
    model, template, system = (fields.text(name) for name in ("model", "template", "system"))
    return SavedSession(model, template, system, _sampling(fields.object("sampling")), _messages(fields))


def _damaged(message: str) -> SessionFileError:
    return SessionFileError(message, hint=UNCHANGED)


def _sampling(fields: Fields) -> dict[str, Any]:
    fields.only(KEPT_SAMPLING)
    sampling = dict(fields.values)
    if "stop" in sampling:
        if not isinstance(sampling["stop"], list):
            raise fields.wrong("stop", "a list of strings")
        sampling["stop"] = tuple(sampling["stop"])
    try:
        SamplingParams.from_kwargs(**sampling)
    except UsageError as error:
        raise _damaged(f"{fields.where}{error.message}") from error
    return sampling


def _messages(fields: Fields) -> tuple[Message, ...]:
    messages = fields.values.get("messages")
    if not isinstance(messages, list):
        raise fields.wrong("messages", "a list")
    checked = []
    for number, raw in enumerate(messages, 1):
        where = f"{fields.where}message {number}"
        try:
            message = Message.of(raw)
        except (PromptError, UsageError) as error:
            raise _damaged(f"{where}: {error.message}") from error
        if message.role != ("user" if number % 2 else "assistant"):
            raise _damaged(f"{where} is from {message.role}; user and assistant take turns.")
        if not message.content.strip():
            raise _damaged(f"{where} is empty.")
        checked.append(message)
    if len(checked) % 2:
        raise _damaged(f"{fields.where}the last message has no reply.")
    return tuple(checked)


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, if it does not exist."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be created: {printable(error.strerror or error)}.") from error
