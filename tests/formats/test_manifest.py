"""mixq.json, written and read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixq.errors import ModelFileError
from mixq.formats.manifest import FILE_NAME, Manifest

SHA = "0123456789abcdef" * 4
GOOD = Manifest(
    source={"name": "mixtral"},
    settings={"format": "nl4"},
    shards={"model-00001-of-00002.safetensors": SHA},
    files={"config.json": SHA},
    errors={"lm_head": 0.004},
    group_errors={"lm_head": 0.005},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    GOOD.write(tmp_path)
    assert Manifest.read(tmp_path) == GOOD
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_a_folder_made_before_group_errors_were_stored_is_read(tmp_path: Path) -> None:
    GOOD.write(tmp_path)
    raw = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    for key in ("group_errors", "sizes", "few_tokens", "sha256"):
        del raw[key]
    (tmp_path / FILE_NAME).write_text(json.dumps(raw), encoding="utf-8")
    assert Manifest.read(tmp_path) == replace(GOOD, group_errors={})


def test_a_change_of_the_file_itself_shows(tmp_path: Path) -> None:
    GOOD.write(tmp_path)
    written = (tmp_path / FILE_NAME).read_bytes()
    for old, new in ((b'"sha256": "', b'"sha256": "0'), (b'"sha256"', b'"sha255"'), (b'"errors"', b'"error"')):
        (tmp_path / FILE_NAME).write_bytes(written[::-1].replace(old[::-1], new[::-1], 1)[::-1])
        with pytest.raises(ModelFileError):
            Manifest.read(tmp_path)
    name = next(iter(GOOD.errors))
    (tmp_path / FILE_NAME).write_bytes(written.replace(name.encode(), name[:-1].encode() + b"9", 1))
    with pytest.raises(ModelFileError, match="its sha256 does not match"):
        Manifest.read(tmp_path)


BAD: dict[str, dict[str, Any]] = {
    "another version": {"format_version": 2},
    "no version": {"format_version": None},
    "version true": {"format_version": True},
    "shards are a list": {"shards": []},
    "files are missing": {"files": None},
    "a path out of the folder": {"files": {"../../.ssh/authorized_keys": SHA}},
    "an absolute path": {"files": {"/etc/passwd": SHA}},
    "a Windows path": {"files": {"C:\\x": SHA}},
    "the folder above": {"files": {"..": SHA}},
    "a name with a newline": {"files": {"a\n": SHA}},
    "a short sum": {"shards": {"a.safetensors": SHA[:-1]}},
    "a sum in capitals": {"shards": {"a.safetensors": SHA.upper()}},
    "a sum that is a number": {"shards": {"a.safetensors": 1}},
    "an error that is text": {"errors": {"a": "0.1"}},
    "an error that is true": {"errors": {"a": True}},
    "group errors are a list": {"group_errors": []},
    "a group error that is text": {"group_errors": {"a": "0.1"}},
}


@pytest.mark.parametrize("kind", BAD)
def test_anything_else_is_a_model_file_error(kind: str, tmp_path: Path) -> None:
    GOOD.write(tmp_path)
    raw = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    (tmp_path / FILE_NAME).write_text(json.dumps({**raw, **BAD[kind]}), encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"mixq\.json"):
        Manifest.read(tmp_path)


def test_a_missing_or_oversized_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        Manifest.read(tmp_path)
    with (tmp_path / FILE_NAME).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelFileError, match="at most"):
        Manifest.read(tmp_path)
