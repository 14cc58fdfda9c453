"""Strict JSON: what Python's parser takes and JSON does not have is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixq.errors import ModelFileError, UsageError
from mixq.formats.json_file import parse_json, parse_json_object, read_json_object

REFUSED: dict[bytes, str] = {
    b'{"a": 1, "a": 2}': r"the key 'a' occurs twice",
    b'[{"b": {"c": 1, "c": 1}}]': r"the key 'c' occurs twice",
    b"[NaN]": "NaN is not a number",
    b"[-Infinity]": "-Infinity is not a number",
    b"[1e309]": "a number is too large",
    b"[" + b"9" * 5000 + b"]": "too many digits",
    b'"\xff"': "not UTF-8: byte 1",
    b'"\xed\xa0\x80"': "not UTF-8: byte 1",  # half a character, encoded
    b"\xef\xbb\xbf{}": "BOM",
    b"[1,]": "line 1, column",
    b"": "line 1, column 1",
    b"[" * 100_000: "nested too deep",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]):
        parse_json(text)
    with pytest.raises(UsageError, match=r"^x\.json is not JSON: "):
        parse_json_object(text, "x.json", error=UsageError)


def test_depth() -> None:
    text = b"[" * 5 + b'{"a": [1]}' + b"]" * 5
    parse_json(text, 7)
    with pytest.raises(ValueError, match="nested too deep, more than 6 levels"):
        parse_json(text, 6)


def test_objects_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[]")
    with pytest.raises(ModelFileError, match=r"x\.json must be a JSON object"):
        read_json_object(path)
    path.write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(ModelFileError, match="bytes; such a file has at most 100"):
        read_json_object(path, 100)
    assert read_json_object(path)["a"] == "x" * 100
