"""The prompt, by the keys that are pressed; and what it remembers."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from mixq.chat import history
from mixq.chat.history import PrivateHistory
from mixq.chat.input import Interrupted, LineInput

ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP, TAB = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A", "\t"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def prompt(keys: PipeInput, path: Path | None = None) -> LineInput:
    return LineInput(lambda width: "status", path, source=keys, screen=DummyOutput())


@pytest.mark.parametrize(
    ("pressed", "read"),
    [
        ("hello" + ENTER, "hello"),
        ("one" + ALT_ENTER + "two" + ENTER, "one\ntwo"),
        ('"""one' + ENTER + ENTER + 'two"""' + ENTER, '"""one\n\ntwo"""'),
        ("\x1b[200~pasted\nlines\r\nmore\x1b[201~" + ENTER, "pasted\nlines\nmore"),
        ("thrown away" + CTRL_C + "kept" + ENTER, "kept"),
        ("a line" + "\n", "a line"),
    ],
)
def test_what_keys_give(keys: PipeInput, pressed: str, read: str) -> None:
    keys.send_text(pressed)
    assert prompt(keys).read() == read


def test_leaving(keys: PipeInput) -> None:
    line = prompt(keys)
    keys.send_text(CTRL_C)
    with pytest.raises(Interrupted):
        line.read()
    keys.send_text(CTRL_D)
    with pytest.raises(EOFError):
        line.read()


def test_text_to_change_stands_there_already(keys: PipeInput) -> None:
    keys.send_text(" more" + ENTER)
    assert prompt(keys).read(default="said") == "said more"


def test_history_is_kept_for_the_owner_alone(keys: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "home" / "chat_history"
    keys.send_text("one\x1b\rtwo" + ENTER)
    assert prompt(keys, path).read() == "one\ntwo"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    assert list(PrivateHistory(path).load_history_strings()) == ["one\ntwo"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_that_cannot_be_kept_costs_no_chat(keys: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "chat_history", tmp_path):
        keys.send_text("hello" + ENTER)
        line = prompt(keys, path)
        assert line.read() == "hello"
        assert line.problem is not None


def test_long_history_is_shortened_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat_history"
    kept = PrivateHistory(path)
    for number in range(100):
        kept.store_string(f"entry {number}\nof two lines")
    monkeypatch.setattr(history, "MAX_BYTES", 1000)
    monkeypatch.setattr(history, "KEPT_BYTES", 500)
    entries = list(PrivateHistory(path).load_history_strings())
    assert entries[0] == "entry 99\nof two lines"
    assert 3 < len(entries) < 12
    assert all(entry.startswith("entry") and entry.endswith("of two lines") for entry in entries)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
