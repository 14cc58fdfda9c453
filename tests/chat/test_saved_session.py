"""Session files: whole or not at all, for their owner alone, and nothing believed that stands in one."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.chat import saved_session
from mixq.chat.saved_session import SavedSession, SessionFileError
from mixq.errors import StorageError
from mixq.text.chat_template import Message

GOOD: dict[str, Any] = {
    "format": "mixq-session",
    "version": 1,
    "model": "m",
    "template": "mistral-v1",
    "system": "",
    "sampling": {"temperature": 0.5, "stop": ["x"]},
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}
SESSION = SavedSession(
    "m", "mistral-v1", "Be kind.", {"top_k": 3}, (Message("user", "é😀\x1b\u202e"), Message("assistant", "b\n"))
)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    saved_session.save(path, SESSION)
    assert saved_session.load(path) == SESSION


@pytest.mark.parametrize("before", [None, 0o666])
def test_only_the_owner_can_read_it(tmp_path: Path, before: int | None) -> None:
    path = saved_session.session_path("x")
    if before is not None:
        saved_session.save(path, SESSION)
        path.chmod(before)
        path.with_name("x.json.partial").write_text("left over")
        path.with_name("x.json.partial").chmod(before)
    saved_session.save(path, SESSION)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert saved_session.names() == ["x"]


def test_failed_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    saved_session.save(path, SESSION)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        saved_session.save(path, SavedSession("m", "t"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"format": "other"}, "not a mixq session"),
    ({"version": 2}, "newer mixq"),
    ({"version": 10**4000}, "newer mixq"),
    ({"version": 0}, "version is 0; it must be 1"),
    ({"version": True}, "version is True; it must be 1"),
    ({"version": "1"}, "version is '1'; it must be 1"),
    ({"model": 5}, "model is 5; it must be a string"),
    ({"system": None}, "system is None; it must be a string"),
    ({"system": "\ud800"}, "not valid Unicode"),
    ({"sampling": []}, "sampling is []; it must be an object"),
    ({"sampling": {"temperature": 1e9}}, "temperature is"),
    ({"sampling": {"temperature": "hot"}}, "temperature is"),
    ({"sampling": {"stop": 5}}, "stop is 5; it must be a list"),
    ({"sampling": {"stop": [""]}}, "stop"),
    ({"sampling": {"logit_bias": {}}}, "logit_bias"),
    ({"sampling": {"\x1b[2J": 1}}, "x1b"),
    ({"messages": {}}, "messages is {}; it must be a list"),
    ({"messages": [5, 5]}, "message 1"),
    ({"messages": [{"role": "user", "content": "a"}]}, "has no reply"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "take turns"),
    ({"messages": [{"role": "root\x1b", "content": "a"}]}, "role is"),
    ({"messages": [{"role": "system", "content": "a"}]}, "take turns"),
    ({"messages": [{"role": "user", "content": " "}]}, "empty"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "must be a string"),
    ({"messages": [{"role": "user", "content": "a\udfff"}]}, "not valid Unicode"),
    ({"messages": [{"role": "user", "content": "a", "tool": 1}]}, "unknown key"),
    ({"extra\x1b": 1}, "x1b"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words for _, words in BAD])
def test_hostile_files_are_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(_dumps(GOOD | change))
    with pytest.raises(SessionFileError) as refused:
        saved_session.load(path)
    assert words in refused.value.message
    assert refused.value.message.isprintable()
    path.write_text(_dumps(GOOD))
    assert len(saved_session.load(path).messages) == 2


def _dumps(document: Any) -> str:
    text = json.dumps({**document, "version": 0} if document.get("version") == 10**4000 else document)
    return text.replace('"version": 0', f'"version": 1{"0" * 4000}') if document.get("version") == 10**4000 else text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"format": NaN}', b'{"a": 1, "a": 2}']
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SessionFileError):
        saved_session.load(path)


def test_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    monkeypatch.setattr(Path, "open", None)
    with pytest.raises(SessionFileError, match="104,857,600 bytes"):
        saved_session.load(path)


def test_pipe_or_folder_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    for path in (tmp_path / "x.json", tmp_path):
        with pytest.raises(SessionFileError, match="not a regular file"):
            saved_session.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.sampled_from(sorted(GOOD)))
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_a_field_is_read_or_refused(value: Any, key: str) -> None:
    path = saved_session.session_path("any")
    saved_session.make_private_folder(path.parent)
    path.write_text(json.dumps(GOOD | {key: value}))
    with contextlib.suppress(SessionFileError):
        saved_session.load(path)


def test_name_is_a_session_of_the_data_folder_and_a_path_a_file(tmp_path: Path) -> None:
    assert saved_session.session_path("trip") == saved_session.folder() / "trip.json"
    assert saved_session.session_path("trip.json") == Path("trip.json")
    assert saved_session.session_path("./trip") == Path("trip")
    assert saved_session.session_path("~/trip.json") == Path.home() / "trip.json"
    assert saved_session.session_path("..").parent == saved_session.folder()
