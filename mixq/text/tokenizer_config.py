"""The files next to a tokenizer: added tokens, the names of BOS and EOS, the chat template's text.

Contract: `TokenizerConfig.read` reads tokenizer_config.json, added_tokens.json, special_tokens_map.json and
chat_template.jinja as transformers saves them, any of which may be missing. Sizes, ids and types are checked. The Jinja
text is only searched, by `mixq.text.choice`; it is never run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixq.errors import ModelFileError, is_integer, printable
from mixq.formats.json_file import MAX_BYTES, parse_json_object, read_bounded
from mixq.text.tokenizer import MAX_VOCABULARY

CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_TOKENS = "special_tokens_map.json"
JINJA = "chat_template.jinja"

MAX_CONTENT = 1000
"""Most characters of an added token; published ones have up to about 30."""

MAX_JINJA = 1 << 20

_TURN_MARKER = re.compile(r"<\|.*\|>|</?s>")
"""Tokens that start or end a turn are control tokens, even if the file does not mark them as special."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that was added to the vocabulary."""

    content: str  # its text, or the name of a control token
    is_control: bool  # it is a control token, not text


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The contents of the files next to a tokenizer."""

    # tokens by id; those of the vocabulary itself may be among them
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    # bos_token, eos_token: names; None if the files do not have them
    bos_token: str | None = None
    eos_token: str | None = None
    # a text after a control token gets a leading space, as the first text does. This is how most fine-tunes were
    # trained, and transformers' default.
    legacy: bool = True
    add_bos: bool = True  # a text starts with the BOS token
    template: str | None = None  # the chat template's Jinja text; None if there is none
    template_file: str = CONFIG  # the file that has it

    @classmethod
    def read(cls, folder: Path) -> TokenizerConfig:
        """Read these files in a model folder.

        Raises:
            ModelFileError: a file is not a JSON object, or a value has the wrong type.
            StorageError: a file cannot be read.
        """
        limits = {CONFIG: MAX_BYTES, SPECIAL_TOKENS: MAX_BYTES, ADDED_TOKENS: MAX_BYTES, JINJA: MAX_JINJA}
        there = [name for name in limits if (folder / name).exists() or (folder / name).is_symlink()]
        return cls.of({name: read_bounded(folder / name, limits[name]) for name in there})

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> TokenizerConfig:
        """Return the contents of these files, given the files of a folder by name.

        Raises:
            ModelFileError: a file is not a JSON object, or a value has the wrong type.
        """
        settings, special = _parsed(files, CONFIG), _parsed(files, SPECIAL_TOKENS)
        named = {key: _name(value) for key, value in {**special, **settings}.items() if key.endswith("_token")}
        jinja = files.get(JINJA)
        return cls(
            added=_added_tokens(_parsed(files, ADDED_TOKENS), settings, _special_names(special, settings)),
            bos_token=named.get("bos_token"),
            eos_token=named.get("eos_token"),
            legacy=settings.get("legacy") is not False,
            add_bos=settings.get("add_bos_token") is not False,
            template=_template(settings.get("chat_template") if jinja is None else jinja.decode("utf-8", "replace")),
            template_file=CONFIG if jinja is None else JINJA,
        )


def is_turn_marker(content: str) -> bool:
    """Return whether a token's text marks turns, whatever the file says."""
    return _TURN_MARKER.fullmatch(content) is not None


def _parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_json_object(files[name], name) if name in files else {}


def _template(value: object) -> str | None:
    """Return the default template of several: [{"name": "default", "template": "..."}, ...] or {name: text}."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        value = {str(entry.get("name")): entry.get("template") for entry in entries}
    if isinstance(value, dict):
        value = value.get("default", next(iter(value.values()), None))
    return value if isinstance(value, str) and value.strip() else None


def _name(value: object) -> str | None:
    """Return a token's name, which is a string or the content of an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _special_names(*files: Mapping[str, Any]) -> set[str]:
    values = [value for settings in files for key, value in settings.items() if key.endswith("_token")]
    for settings in files:
        listed = settings.get("additional_special_tokens")
        values += listed if isinstance(listed, list) else []
    return {name for name in map(_name, values) if name is not None}


def _added_tokens(older: Mapping[str, Any], settings: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Return the added tokens; tokenizer_config.json takes precedence over added_tokens.json."""
    added: dict[int, AddedToken] = {}
    for content, token_id in older.items():
        added[_checked_id(token_id, ADDED_TOKENS)] = _token(content, ADDED_TOKENS, content in special)
    decoder = settings.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise ModelFileError(f"{CONFIG}: added_tokens_decoder is not an object.")
    for key, entry in decoder.items():
        if not isinstance(entry, dict) or not re.fullmatch(r"[0-9]{1,9}", key):
            raise ModelFileError(f"{CONFIG}: added_tokens_decoder: {printable(repr(key))} is not an id with its token.")
        name = entry.get("content")
        added[_checked_id(int(key), CONFIG)] = _token(name, CONFIG, entry.get("special") is True or name in special)
    return added


def _token(content: object, where: str, special: bool) -> AddedToken:
    if not isinstance(content, str) or not 1 <= len(content) <= MAX_CONTENT:
        raise ModelFileError(
            f"{where}: an added token is {printable(repr(content), 60)}; "
            f"it must be a string of 1 to {MAX_CONTENT} characters."
        )
    return AddedToken(content, special or is_turn_marker(content))


def _checked_id(value: object, where: str) -> int:
    if not is_integer(value, 0, MAX_VOCABULARY - 1):
        raise ModelFileError(
            f"{where}: an added token has the id {printable(repr(value), 60)}; "
            f"ids are whole numbers below {MAX_VOCABULARY:,}."
        )
    return value
