"""The suite on a model: what is asked, what counts as answered, and what --execute changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mixq
from mixq.engine.events import Done, Stats
from mixq.errors import PromptTooLong, UsageError
from mixq.measure.suite import execution
from mixq.measure.suite.checks import CHECKS
from mixq.measure.suite.questions import LANGUAGES, TEXTS, Question, questions
from mixq.measure.suite.run import Result, run, scores
from tests.measure.suite.test_writing import SNAKE

STATS = Stats(10, 0, 0.1, 5, 0.5, 0.1, 15, 512)


class Parrot:
    """A model that answers everything with one text, and notes how it was asked."""

    def __init__(self, answer: str, reason: Any = "stop", is_chat: bool = True) -> None:
        self.answer, self.reason, self.is_chat = answer, reason, is_chat
        self.folder = SimpleNamespace(path=Path("parrot"))
        self.template = SimpleNamespace(why="it has no chat template")
        self.asked: list[dict[str, Any]] = []

    def new_session(self) -> Parrot:
        return self

    def chat(self, messages: list[dict[str, str]], **options: Any) -> Iterator[Done]:
        if self.reason == "too long":
            raise PromptTooLong(900, 512)
        self.asked.append({"messages": messages, **options})
        return iter([Done(self.reason, self.answer, tuple(range(6)), STATS)])


def results_of(model: Any, test: str, language: str = "en", **options: Any) -> Result:
    (asking, result) = run(model, questions((test,), (language,)), **options)
    assert isinstance(asking, Question)
    assert isinstance(result, Result)
    return result


def test_every_test_has_a_check_and_every_language() -> None:
    assert list(TEXTS) == list(CHECKS)
    assert len(TEXTS) == 12
    for test, texts in TEXTS.items():
        assert list(texts) == (["en"] if test == "snake" else list(LANGUAGES)), test
    assert len(questions()) == 56
    assert [q.language for q in questions(("json",), ("it", "fr"))] == ["fr", "it"]


def test_no_question_is_its_own_answer() -> None:
    from mixq.measure.suite.checks import check

    for question in questions():
        assert not check(question.test, question.language, question.text).passed, question


def test_an_answer_is_asked_for_and_judged() -> None:
    model = Parrot("The result is 20.")
    result = results_of(model, "arithmetic", seed=7, max_tokens=50)
    assert (result.passed, result.answer, result.tokens, result.prompt_tokens) == (True, "The result is 20.", 6, 10)
    (asked,) = model.asked
    assert asked["messages"] == [{"role": "user", "content": "What is 25 - (4 * 2) + 3?"}]
    assert (asked["temperature"], asked["max_tokens"], asked["seed"]) == (0.0, 50, 7)
    assert results_of(Parrot("14"), "arithmetic").reason == "says 14; it is 20"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("length", "not finished after 6 tokens"),
        ("context", "the context was full"),
        ("too long", "The prompt has 900 tokens"),
    ],
)
def test_an_answer_that_does_not_end_is_wrong(reason: str, words: str) -> None:
    result = results_of(Parrot("The result is 20.", reason), "arithmetic")
    assert not result.passed
    assert words in result.reason


def test_cancelled() -> None:
    cancel = threading.Event()
    events = run(Parrot("20"), questions(("arithmetic",)), cancel=cancel)  # type: ignore[arg-type]
    assert isinstance(next(events), Question)
    assert isinstance(next(events), Result)
    cancel.set()
    assert list(events) == []
    (asking,) = run(Parrot("20", "cancelled"), questions(("arithmetic",), ("en",)))  # type: ignore[arg-type]
    assert isinstance(asking, Question)


def test_a_base_model_is_refused() -> None:
    with pytest.raises(UsageError, match="parrot is a base model"):
        list(run(Parrot("20", is_chat=False), questions()))  # type: ignore[arg-type]


def test_programs_are_run_only_on_request(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    sly = Parrot(f"```python\nopen({str(sign)!r}, 'w')\nfor i in range(1, 101):\n    print(i)\n```")
    result = results_of(sly, "numbers")
    assert (result.passed, result.executed, sign.exists()) == (True, False, False)
    result = results_of(sly, "numbers", execute=True)
    assert (result.passed, result.executed, sign.exists()) == (True, True, True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import itertools\nfor i in itertools.count(1):\n    print(i)\n    if i == 100: break", ""),
        ("for i in range(99):\n    print(i)", "prints 0 to 98, 99 values"),
        ("for i in range(1, 101):\n    print(j)", "fails: NameError: name 'j' is not defined"),
        ("for i in range(1, 101) print(i)", "the code does not parse"),
        ("for i in range(1, 101):\n    pass\nprint(i)", "prints 100"),
        ("for i in range(1, 101):\n    print(i * 2)", "prints 2 to 200, 100 values"),
        ("while True:\n    pass", "did not end within 2 s"),
        ("while True:\n    print('a long line of text' + ' that goes on')", "fails: OSError"),
        ("print('x' * 10 ** 10)", "fails: MemoryError"),
        ("def f(n):\n    f(n + 1)\nf(1)", "fails: RecursionError"),
        ("print(1 // 0)", "fails: ZeroDivisionError"),
    ],
)
def test_numbers_by_running_them(code: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "2 s" in reason:
        monkeypatch.setattr(execution, "SECONDS", 2.0)
        monkeypatch.setitem(execution.run_program.__kwdefaults__, "seconds", 2.0)
    result = results_of(Parrot(f"```python\n{code}\n```"), "numbers", execute=True)
    assert result.passed is (reason == "")
    assert result.reason.startswith(reason)


def test_snake_is_started_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    if not execution.HAS_TERMINALS:
        return
    monkeypatch.setattr(execution, "GAME_SECONDS", 120.0)  # either game ends by itself, in seconds
    good, bad = f"```python\n{SNAKE}```", f"```python\n{SNAKE.replace('height // 2', 'height * 2')}```"
    assert results_of(Parrot(good), "snake", execute=True).passed
    assert not results_of(Parrot(bad), "snake").executed
    result = results_of(Parrot(bad), "snake", execute=True)
    assert (result.passed, result.executed) == (False, True)
    assert "fails when started: _curses.error" in result.reason


def test_scores() -> None:
    model = Parrot("The result is 20.")
    results = [r for r in run(model, questions(("president", "arithmetic"))) if isinstance(r, Result)]  # type: ignore[arg-type]
    by_test, by_language = scores(results)
    assert {name: (score.passed, score.asked) for name, score in by_test.items()} == {
        "president": (0, 5),
        "arithmetic": (5, 5),
    }
    assert {(score.passed, score.asked) for score in by_language.values()} == {(1, 2)}


def test_the_demo_model_on_what_it_knows() -> None:
    model = mixq.load(context=512)
    asked = questions(("president", "faster", "arithmetic", "killers"), ("en",))
    results = [result for result in run(model, asked) if isinstance(result, Result)]
    assert {result.test: result.passed for result in results} == {
        "president": True,
        "faster": True,
        "arithmetic": True,
        "killers": False,
    }
    assert all(result.answer and result.seconds > 0 for result in results)
