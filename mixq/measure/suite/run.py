"""The suite on a model: question after question, each answer judged as it comes.

Contract: `run` yields `Asking`, then a `Result`, for each question; when `cancel` is set it ends, and the answer that
was under way is dropped. Nothing that a model wrote is executed without `execute`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mixq.errors import PromptError, UsageError, printable
from mixq.measure.suite import execution, writing
from mixq.measure.suite.checks import check
from mixq.measure.suite.code_blocks import python_code
from mixq.measure.suite.questions import Question
from mixq.measure.suite.reading import Verdict, unfit, wrong

if TYPE_CHECKING:
    from mixq.engine.events import Done
    from mixq.engine.model import Model

VERSION = 1
"""Goes up when a question or a check changes: figures of two versions are not compared."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A question is asked now."""

    question: Question


@dataclass(frozen=True, slots=True)
class Result:
    """One question and its answer.

    `reason` says why it did not pass. `executed`: the verdict is from running the program of the answer.
    """

    test: str
    language: str
    passed: bool
    reason: str
    answer: str
    prompt: str
    finish_reason: str
    seconds: float
    prompt_tokens: int
    tokens: int
    tokens_per_second: float
    executed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return asdict(self)


def run(
    model: Model,
    questions: Sequence[Question],
    *,
    execute: bool = False,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Asking | Result]:
    """Ask the questions, each in a conversation of its own.

    Args:
        model: one that chats.
        execute: run the programs of answers, see `execution`.
        max_tokens: in place of each question's own limit.

    Raises:
        UsageError: a base model, or a parameter out of bounds.
    """
    if not model.is_chat:
        raise UsageError(
            f"{printable(model.folder.path.name)} is a base model ({model.template.why}): it completes texts, and was "
            "not made to answer questions.",
            hint="Measure it with mixq eval ppl; or give a --template, and it is asked all the same.",
        )
    from mixq.engine.sampling import SamplingParams

    sampling: dict[str, Any] = {"temperature": temperature, "seed": seed}
    SamplingParams.from_kwargs(
        **sampling, max_tokens=1 if max_tokens is None else max_tokens
    )  # refused before the first question
    session = model.new_session()
    for question in questions:
        if cancel is not None and cancel.is_set():
            return
        yield Asking(question)
        begun = time.perf_counter()
        limit = question.max_tokens if max_tokens is None else max_tokens
        try:
            events = session.chat(
                [{"role": "user", "content": question.text}], cancel=cancel, max_tokens=limit, **sampling
            )
        except PromptError as error:
            yield Result(question.test, question.language, False, error.message, "", question.text, "", 0.0, 0, 0, 0.0)
            continue
        done = _last(events)
        if done.reason == "cancelled":
            return
        seconds = time.perf_counter() - begun
        verdict, executed = judge(question, done, execute=execute)
        yield Result(
            question.test,
            question.language,
            verdict.passed,
            verdict.reason,
            done.text,
            question.text,
            done.reason,
            seconds,
            done.stats.prompt_tokens + done.stats.cached_tokens,
            len(done.token_ids),
            done.stats.decode_tokens_per_second,
            executed,
        )


def _last(events: Iterable[object]) -> Done:
    from mixq.engine.events import Done

    for event in events:
        if isinstance(event, Done):
            return event
    raise AssertionError("an answer ends with Done")


def judge(question: Question, done: Done, *, execute: bool) -> tuple[Verdict, bool]:
    """Return the verdict on an answer, and whether a program of it was run for that."""
    if done.reason == "length":
        return wrong(f"not at its end after {len(done.token_ids)} tokens"), False
    if done.reason == "context":
        return wrong("the context was full before its end"), False
    verdict = check(question.test, question.language, done.text)
    if execute and question.test == "numbers" and unfit(done.text, 10_000) is None:
        return _run_numbers(done.text)
    if execute and question.test == "snake" and verdict.passed and execution.HAS_TERMINALS:
        return _start_snake(done.text), True
    return verdict, False


def _run_numbers(answer: str) -> tuple[Verdict, bool]:
    try:
        outcome = execution.run_program(python_code(answer))
    except (SyntaxError, LookupError):
        return writing.numbers(answer, ""), False
    if outcome.code is None:
        return wrong(f"did not end within {execution.SECONDS:g} s"), True
    if outcome.code:
        return wrong(f"fails: {printable(outcome.last_error)}"), True
    return writing.one_to_hundred(outcome.output), True


def _start_snake(answer: str) -> Verdict:
    """Right is a game that is still running, or has ended by itself, after some seconds on a terminal."""
    outcome = execution.start_game(python_code(answer))
    if outcome.code:
        return wrong(f"fails when started: {printable(outcome.last_error)}")
    return Verdict(True) if outcome.output else wrong("draws nothing when started")


@dataclass(frozen=True, slots=True)
class Score:
    """How many of the questions that were asked were answered right."""

    passed: int
    asked: int


def scores(results: Sequence[Result]) -> tuple[dict[str, Score], dict[str, Score]]:
    """Return the scores by test and by language, in the order in which they were asked."""
    by_test: dict[str, list[bool]] = {}
    by_language: dict[str, list[bool]] = {}
    for result in results:
        by_test.setdefault(result.test, []).append(result.passed)
        by_language.setdefault(result.language, []).append(result.passed)
    return _counted(by_test), _counted(by_language)


def _counted(verdicts: dict[str, list[bool]]) -> dict[str, Score]:
    return {key: Score(sum(passed), len(passed)) for key, passed in verdicts.items()}
