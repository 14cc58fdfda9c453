"""`mixq chat` without a terminal: lines of a pipe, each a conversation of its own. The chat itself: tests/tui."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import RunCli

GREEDY = ("--temperature", "0", "--max-tokens", "6")


def test_each_line_of_a_pipe_is_a_conversation_of_its_own(cli: RunCli, quantized: Path) -> None:
    both = cli("chat", quantized, *GREEDY, stdin=b"Hello\n\nWho are you?\r\nHello")
    assert both.code == 0
    answers = both.out.splitlines()
    assert len(answers) == 3
    assert answers[0] == answers[2] != answers[1]
    assert cli("chat", quantized, *GREEDY, stdin=b"Who are you?\n").out.splitlines() == [answers[1]]


def test_json_of_a_pipe_is_one_document(cli: RunCli, quantized: Path) -> None:
    plain = cli("chat", quantized, *GREEDY, stdin=b"Hello\nWho are you?\n")
    document = json.loads(cli("chat", quantized, *GREEDY, "--json", stdin=b"Hello\nWho are you?\n").out)
    assert [answer["prompt"] for answer in document["answers"]] == ["Hello", "Who are you?"]
    assert [answer["text"] for answer in document["answers"]] == plain.out.splitlines()


def test_empty_pipe_is_no_failure(cli: RunCli, quantized: Path) -> None:
    outcome = cli("chat", quantized)
    assert (outcome.code, outcome.out) == (0, "")


LINES_TWO_OF_THEM_BAD = b"Hello\ncaf\xe9\n" + b"word " * 1000 + b"\nWho are you?\n"


def test_line_that_cannot_be_answered_costs_no_other_its_answer(cli: RunCli, quantized: Path) -> None:
    good = cli("chat", quantized, *GREEDY, stdin=b"Hello\nWho are you?\n")
    outcome = cli("chat", quantized, *GREEDY, stdin=LINES_TWO_OF_THEM_BAD)
    assert (outcome.code, outcome.out) == (2, good.out)
    assert "line 2 of standard input is not UTF-8" in outcome.err
    assert "the context holds 512" in outcome.err


def test_json_has_the_error_of_a_line_in_place_of_its_answer(cli: RunCli, quantized: Path) -> None:
    outcome = cli("chat", quantized, *GREEDY, "--json", stdin=LINES_TWO_OF_THEM_BAD)
    answers = json.loads(outcome.out)["answers"]
    assert outcome.code == 2
    assert ["error" in answer for answer in answers] == [False, True, True, False]
    assert answers[1]["prompt"] == "caf\ufffd"
    assert "not UTF-8" in answers[1]["error"]["message"]
    assert answers[2]["error"]["kind"] == "PromptTooLong"


def test_bad_flag_is_refused_before_the_first_prompt(cli: RunCli, quantized: Path) -> None:
    assert cli("chat", quantized, "--top-k", "-1").code == 2
