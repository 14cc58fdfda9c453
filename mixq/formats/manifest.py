"""mixq.json: the contents of a folder written by mixq, its source, and the sha256 of every file.

Contract: it is written last, when every file that it names is complete. Its last key is the sha256 of all before it,
which detects changes of mixq.json. Reading checks this sum and the types; `mixq verify` checks the sums of the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mixq.errors import Fields, ModelFileError, printable
from mixq.formats.atomic import atomic_write_bytes
from mixq.formats.json_file import read_json_object

FILE_NAME = "mixq.json"
FORMAT_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of mixq.json."""

    source: Mapping[str, Any]  # the source's name, fingerprint and so on
    settings: Mapping[str, Any]  # format, mix and everything else that determines the bytes
    # shards, files: sha256 in hex by file name; `files` are config, tokenizer and every other file
    shards: Mapping[str, str]
    files: Mapping[str, str]
    errors: Mapping[str, float] = field(default_factory=dict)  # relative squared error by layer name
    # the same as a mean over groups; empty in folders that do not have it
    group_errors: Mapping[str, float] = field(default_factory=dict)
    # part, scheme, tensors, weights and nbytes of each part
    sizes: Sequence[Mapping[str, Any]] = field(default_factory=list)
    # experts that received few tokens of the calibration text, and how many
    few_tokens: Mapping[str, int] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Write mixq.json into the folder, atomically."""
        atomic_write_bytes(folder / FILE_NAME, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the content of mixq.json."""
        content = asdict(self)
        return _text({**content, "sha256": _sum(content)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check mixq.json; raises ModelFileError."""
        raw = read_json_object(folder / FILE_NAME)
        checked = Fields(raw, f"{FILE_NAME}: ")
        checked.one_of("format_version", (FORMAT_VERSION,))
        checked.only([*(key.name for key in fields(cls)), "sha256"])
        own = raw.pop("sha256", None)
        if own is not None and own != _sum(raw):
            raise ModelFileError(
                f"{FILE_NAME} was changed: its sha256 does not match its content.",
                hint="Copy the file again, or quantize into an empty folder.",
            )
        for key, empty in (("group_errors", {}), ("few_tokens", {}), ("sizes", [])):
            raw.setdefault(key, empty)
        if not isinstance(raw["sizes"], list):
            raise checked.wrong("sizes", "a list")
        for key in ("source", "settings", "shards", "files", "errors", "group_errors", "few_tokens"):
            checked.object(key)
        for key in ("shards", "files"):
            for name, digest in raw[key].items():
                if not _NAME.fullmatch(name) or name in (".", "..") or not isinstance(digest, str):
                    raise ModelFileError(f"{FILE_NAME}: {printable(repr(name))} in {key} is not the name of a file.")
                if not _SHA256.fullmatch(digest):
                    raise ModelFileError(f"{FILE_NAME}: the sha256 of {printable(name)} must be 64 hex digits.")
        for errors in (checked.object("errors"), checked.object("group_errors")):
            for name in errors.values:
                errors.number(name)
        return cls(**{key.name: raw[key.name] for key in fields(cls)})


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content)).hexdigest()
