"""What a line means, and what Tab offers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixq.chat import saved_session
from mixq.chat.commands import COMMANDS, Order, is_open, setting_value, settings, understand
from mixq.chat.completion import candidates
from mixq.chat.saved_session import SavedSession
from mixq.errors import UsageError
from mixq.system import paths
from mixq.text.chat_template import Message


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("hello", "hello"),
        ("  ", None),
        ("/help", Order("/help", "")),
        (" /Set  top_k  5 ", Order("/set", "top_k  5")),
        ("/quit", Order("/exit", "")),
        ("/?", Order("/help", "")),
        ("/system two\nlines", Order("/system", "two\nlines")),
        ("//slash", "/slash"),
        ("/etc/passwd is a file", "/etc/passwd is a file"),
        ("/1 + 1/", "/1 + 1/"),
        ('"""\n/help\n\n"""', "/help"),
        ('"""one line"""', "one line"),
        ('""""""', None),
        ('say "hello"', 'say "hello"'),
    ],
)
def test_what_a_line_means(line: str, meant: object) -> None:
    assert understand(line) == meant


def test_unknown_command_is_refused_with_the_closest() -> None:
    with pytest.raises(UsageError, match="Did you mean '/regen'") as refused:
        understand("/regne \x1b[2J")
    assert "//regne \\x1b" in str(refused.value.hint)
    with pytest.raises(UsageError):
        understand("/")


def test_triple_quotes_are_open_until_they_end() -> None:
    for text in ('"""', '"""a', '"""a\nb', '""""', ' """x'):
        assert is_open(text)
    for text in ('"""a"""', '"""a\nb"""', "a", '""', 'a """'):
        assert not is_open(text)


def test_settings_are_checked() -> None:
    assert setting_value("stop", "none") == ()
    assert setting_value("stop", "é\\n") == ("é\n",)
    assert setting_value("max_tokens", "none") is None
    for name, text in (("temperature", "none"), ("top_k", "1e3"), ("seed", "-1"), ("min_p", "inf"), ("max_tokens", "")):
        with pytest.raises(UsageError):
            setting_value(name, text)
    assert dict(settings({"stop": ("a\n",)}))["stop"] == "'a\\n'"


def offered(text: str) -> list[str]:
    word, found = candidates(text)
    assert text.endswith(word)
    return found


def test_commands_are_offered() -> None:
    assert offered("/") == [command.name for command in COMMANDS]
    assert offered("/s") == ["/set", "/system", "/save", "/stats"]
    assert offered("hello /s") == offered("/s\n/s") == offered("/nothing x") == []


def test_arguments_are_offered() -> None:
    for name in ("mixtral", "mini"):
        (paths.store() / name).mkdir(parents=True)
    assert offered("/set te") == ["temperature"]
    assert offered("/set seed ") == ["default", "none"]
    assert offered("/set seed d") == ["default"]
    assert offered("/model mixt") == ["mixtral"]


def test_sessions_and_files_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_session.save(saved_session.session_path("trip"), SavedSession("m", "t", messages=(Message("user", "a"),)))
    for name in ("a.json", "b.txt", ".hidden.json", "bad\x1bname.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert offered("/load ") == ["trip", "a.json", "folder/"]
    assert offered("/load tr") == offered("/save -f tr") == ["trip"]
    assert offered(f"/save {tmp_path}{os.sep}") == [f"{tmp_path}/a.json", f"{tmp_path}/folder/"]
    assert offered("/load .h") == [".hidden.json"]
    assert offered("/model f") == ["folder/"]
    assert offered("/load /nowhere/") == []
