"""`mixq chat`: lines of a pipe, and the commands and turns at a terminal."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixq.cli.conversation import Conversation
from mixq.cli.repl import Repl
from mixq.errors import PromptError
from mixq.events import Done, Event, FinishReason, PromptProgress, Stats, Token
from mixq.text.chat_template import Message
from tests.cli.conftest import RunCli

STATS = Stats(3, 0, 0.1, 2, 0.1, 0.1, 5, 64)
GREEDY = ("--temperature", "0", "--max-tokens", "6")


def done(text: str, reason: FinishReason = "stop", tail: str = "") -> Done:
    return Done(reason, text, (1,) * len(text), STATS, tail)


class EchoSession:
    """Answers with the last message in brackets; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Message], dict[str, Any]]] = []

    def chat(self, messages: list[Message], **sampling: Any) -> Iterator[Event]:
        self.asked.append((messages, sampling))
        said = messages[-1].content
        if said == "too long":
            raise PromptError("The prompt has 99 tokens; the context holds 64.")
        return self._answer(said, sampling["cancel"])

    def _answer(self, said: str, cancel: threading.Event | None) -> Iterator[Event]:
        yield PromptProgress(3, 3)
        if said == "say nothing":
            yield done("")
            return
        yield Token(1, "[")
        if said == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            assert cancel is not None
            assert cancel.wait(5)
            yield done("[", "cancelled")
            return
        yield Token(2, said)
        yield done(f"[{said}]", tail="]")


def talk(*lines: str, system: str = "", **sampling: Any) -> EchoSession:
    """Lead a chat in which the user types `lines` and then leaves with Ctrl-D; return what the session was asked."""
    session = EchoSession()
    typed = iter(lines)

    def read_line() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    Repl(Conversation(lambda: session, sampling, system), read_line, lambda: {"kv_cache_bytes": 1000}).run()
    return session


def contents(session: EchoSession, turn: int = -1) -> list[str]:
    return [message.content for message in session.asked[turn][0]]


def test_turns_are_one_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    session = talk("one", "", "   ", "two", temperature=0.5)
    assert contents(session) == ["one", "[one]", "two"]
    assert session.asked[-1][1]["temperature"] == 0.5
    captured = capsys.readouterr()
    assert captured.out == "[one]\n[two]\n"
    assert "context 5/64" in captured.err


def test_system_text_stands_first_and_survives_clear() -> None:
    assert contents(talk("one", system="Be brief.")) == ["Be brief.", "one"]
    assert contents(talk("one", "/system Be kind.", "two")) == ["Be kind.", "one", "[one]", "two"]
    assert contents(talk("one", "/clear", "two", system="Be brief.")) == ["Be brief.", "two"]
    assert contents(talk("/system -", "one", system="Be brief.")) == ["one"]


def test_regen_asks_again_with_the_next_seed(capsys: pytest.CaptureFixture[str]) -> None:
    session = talk("/regen", "one", "/regen", "/regen", "two", seed=7)
    assert [contents(session, turn) for turn in range(4)] == [["one"], ["one"], ["one"], ["one", "[one]", "two"]]
    assert [sampling["seed"] for _, sampling in session.asked] == [7, 8, 9, 7]
    assert "no reply to replace" in capsys.readouterr().err


def test_regen_at_temperature_0_says_that_nothing_will_change(capsys: pytest.CaptureFixture[str]) -> None:
    talk("one", "/regen", temperature=0)
    assert "stays the same" in capsys.readouterr().err
    talk("one", "/regen", temperature=0.5)
    assert "stays the same" not in capsys.readouterr().err


def test_interrupt_stops_the_reply_and_keeps_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    session = talk("interrupt", "two")
    assert contents(session) == ["interrupt", "[", "two"]
    assert "[stopped]" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_turn_that_fails_is_shown_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    session = talk("one", "too long", "two")
    assert contents(session) == ["one", "[one]", "two"]
    captured = capsys.readouterr()
    assert "Error: The prompt has 99 tokens" in captured.err
    assert captured.out == "[one]\n[two]\n"


def test_turn_without_a_reply_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    assert contents(talk("say nothing", "two")) == ["two"]
    assert "[no reply]" in capsys.readouterr().err


def test_commands_are_not_said_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    session = talk("/help", "/stats", "/hlep", "/", "/exit", "never said")
    assert session.asked == []
    captured = capsys.readouterr()
    assert captured.out == ""
    for words in ("/regen", "none yet", "kv cache: 1.0 kB", "Did you mean '/help'"):
        assert words in captured.err
    assert contents(talk("//help me")) == ["/help me"]


def test_interrupt_at_the_prompt_leaves() -> None:
    def read_line() -> str:
        raise KeyboardInterrupt

    Repl(Conversation(EchoSession, {}), read_line, dict).run()


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
    assert answers[2]["error"]["kind"] == "PromptError"


def test_bad_flag_is_refused_before_the_first_prompt(cli: RunCli, quantized: Path) -> None:
    assert cli("chat", quantized, "--top-k", "-1").code == 2
