"""`mixq eval suite` as a user types it, on the demo model."""

from __future__ import annotations

import json
import os
import signal

import pytest

from mixq.cli import suite
from tests.cli.conftest import RunCli

FEW = ("--only", "arithmetic", "--only", "killers", "--language", "en", "--language", "de")


def test_a_table_and_scores(cli: RunCli) -> None:
    outcome = cli("eval", "suite", *FEW)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split()[:3] == ["test", "s", "tokens"]
    assert lines[1].startswith("arithmetic  en  ok ")
    assert lines[1].endswith("25 - (4 * 2) + 3 = 25 - 8 + 3 = 17 + 3 = 20")
    assert lines[3].startswith("killers     en  FAIL")
    assert "arithmetic 2/2 · killers 0/2" in lines
    assert "English 1/2 · German 1/2" in lines
    assert lines[-1].startswith("2 of 4 right, ")


def test_as_json(cli: RunCli) -> None:
    outcome = cli("eval", "suite", *FEW, "--json", "--seed", "3")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert (document["passed"], document["asked"], document["complete"]) == (2, 4, True)
    assert document["by_language"] == {"en": {"passed": 1, "asked": 2}, "de": {"passed": 1, "asked": 2}}
    assert document["facts"]["template"].startswith("mistral")
    assert set(document["versions"]) == {"suite", "mixq", "torch", "python"}
    assert document["settings"] == {"execute": False, "max_tokens": None, "temperature": 0.0, "seed": 3}
    first = document["results"][0]
    assert (first["test"], first["passed"], first["finish_reason"]) == ("arithmetic", True, "stop")
    assert first["answer"].endswith("= 20")


def test_full_answers(cli: RunCli) -> None:
    outcome = cli("eval", "suite", "--only", "arithmetic", "--language", "en", "--show")
    assert "  > What is 25 - (4 * 2) + 3?\n  | 25 - (4 * 2) + 3 = 25 - 8" in outcome.out


def test_few_tokens_and_settings_for_chats(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = cli("eval", "suite", "--only", "arithmetic", "--language", "en", "--max-tokens", "5")
    assert "not finished after 5 tokens" in outcome.out
    monkeypatch.setenv("MIXQ_MAX_TOKENS", "5")
    monkeypatch.setenv("MIXQ_TEMPERATURE", "2")
    assert "1 of 1 right" in cli("eval", "suite", "--only", "arithmetic", "--language", "en").out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--only", "arithmetik"), "--only is 'arithmetik'"),
        (("--only", "arithmetik"), "Did you mean 'arithmetic'?"),
        (("--language", "english"), "--language is 'english'"),
        (("--only", "snake", "--language", "de"), '"snake" is in English only'),
        (("--template", "none", "--language", "de"), "is a base model"),
        (("--only", "json", "--temperature", "-1"), "temperature"),
    ],
)
def test_refused(flags: tuple[str, ...], words: str, cli: RunCli) -> None:
    outcome = cli("eval", "suite", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err


def test_ctrl_c_shows_what_was_answered(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = suite._print_result

    def interrupt(*arguments: object, **options: object) -> None:
        shown(*arguments, **options)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(suite, "_print_result", interrupt)
    outcome = cli("eval", "suite", "--only", "arithmetic")
    assert outcome.code == 130
    assert outcome.out.splitlines()[-1].startswith("1 of 1 right")
    assert "interrupted: 1 of 5 questions were answered" in outcome.err
