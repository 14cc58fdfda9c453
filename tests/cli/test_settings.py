"""Flag over environment over config file over default; what the file may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixq.cli.settings import KINDS
from tests.cli.conftest import RunCli


def sampling(cli: RunCli, folder: Path, *flags: str) -> dict[str, Any]:
    outcome = cli("run", folder, "-p", "hi", "--json", *flags)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)["sampling"]
    return found


def test_flag_over_environment_over_file_over_default(
    cli: RunCli, quantized: Path, mixq_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("--max-tokens", "1")
    assert sampling(cli, quantized, *short)["temperature"] == 0.7
    (mixq_home / "config.toml").write_text("temperature = 0.1\ntop_k = 7\nmax_tokens = 1\n")
    assert sampling(cli, quantized) == {"temperature": 0.1, "top_k": 7, "top_p": 0.95, "max_tokens": 1}
    monkeypatch.setenv("MIXQ_TEMPERATURE", "0.2")
    assert sampling(cli, quantized)["temperature"] == 0.2
    assert sampling(cli, quantized, "--temperature", "0.3")["temperature"] == 0.3
    assert sampling(cli, quantized, "--temperature", "0.3")["top_k"] == 7


def test_model_can_be_a_setting(cli: RunCli, quantized: Path, mixq_home: Path) -> None:
    (mixq_home / "config.toml").write_text(f"model = {json.dumps(str(quantized))}\nmax_tokens = 1\n")
    outcome = cli("run", "-p", "hi", "--json")
    assert json.loads(outcome.out)["model"] == str(quantized)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("devise = 'cpu'", "Did you mean 'device'"),
        ("context = '8k'", "context is '8k'; it must be a whole number"),
        ("temperature = true", "it must be a number"),
        ("kv = 8", "it must be a string"),
        ("[runtime]\ndevice = 'cpu'", "runtime is an unknown key"),
        ("device = ", "is not TOML"),
        ("device = 'cpu\x1b'", "is not TOML"),
    ],
)
def test_setting_that_is_refused(cli: RunCli, quantized: Path, mixq_home: Path, content: str, words: str) -> None:
    (mixq_home / "config.toml").write_text(content)
    outcome = cli("run", quantized, "-p", "hi")
    assert outcome.code == 2
    assert words in outcome.err
    assert "config.toml" in outcome.err
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["eval", "ppl", "-h"], ["--version"], ["verify"], ["show"]],
    ids=" ".join,
)
def test_file_that_is_wrong_stops_no_command_that_does_not_need_it(
    cli: RunCli, quantized: Path, mixq_home: Path, arguments: list[str]
) -> None:
    (mixq_home / "config.toml").write_text("devise = 'cpu'")
    assert cli(*arguments, *([quantized] if arguments[0] in ("verify", "show") else [])).code == 0


def test_file_that_is_wrong_is_refused_by_every_command_of_a_model(
    cli: RunCli, quantized: Path, mixq_home: Path
) -> None:
    (mixq_home / "config.toml").write_text("devise = 'cpu'")
    for arguments in (["chat", quantized], ["run", "-p", "--help"], ["eval", "ppl", quantized, "--text", __file__]):
        outcome = cli(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert "Did you mean 'device'" in outcome.err


def test_help_shows_the_programs_own_defaults(cli: RunCli, mixq_home: Path) -> None:
    (mixq_home / "config.toml").write_text("context = 77")
    assert "default: 8192" in cli("run", "--help").out


def test_value_of_a_setting_is_checked_like_a_flag(cli: RunCli, quantized: Path, mixq_home: Path) -> None:
    (mixq_home / "config.toml").write_text("device = 'gpu'")
    outcome = cli("run", quantized, "-p", "hi")
    assert outcome.code == 2
    assert "device is 'gpu'" in outcome.err


def test_environment_of_the_wrong_kind(cli: RunCli, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CONTEXT", "many")
    outcome = cli("run", quantized, "-p", "hi")
    assert outcome.code == 2
    assert "--context" in outcome.err


def test_every_setting_is_a_flag_with_an_environment_variable(
    cli: RunCli, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the wrong kind, or an impossible value, is noticed: so each of them is read."""
    bad = {str: "no-such-value", int: "x", float: "x", bool: "x"}
    for key, kind in KINDS.items():
        if key == "system":  # any text will do
            continue
        with monkeypatch.context() as patch:
            patch.setenv(f"MIXQ_{key.upper()}", bad[kind])
            arguments = ["run", "-p", "hi"] if key == "model" else ["run", str(quantized), "-p", "hi"]
            if kind is bool:  # of the chat alone
                arguments = ["chat", str(quantized)]
            assert cli(*arguments).code in (2, 3), key
