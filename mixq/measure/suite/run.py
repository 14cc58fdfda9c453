"""Runs the suite on a model: asks each question and checks the answer.

Contract: `run` yields each question, then its `Result`; when `cancel` is set it ends and drops the unfinished answer.
Programs written by the model run only with `execute`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mixq.engine.events import Done
from mixq.engine.model import Model
from mixq.engine.sampling import SamplingParams
from mixq.errors import PromptError, UsageError, printable
from mixq.measure.suite import execution, programs
from mixq.measure.suite.checks import check
from mixq.measure.suite.questions import Question
from mixq.measure.suite.reading import RIGHT, Verdict, unfit, wrong

VERSION = 2
"""Increment when a question or a check changes; scores of different versions cannot be compared."""


@dataclass(frozen=True, slots=True)
class Result:
    """One question and its answer.

    `reason`: why it did not pass. `executed`: the verdict comes from running the answer's program.
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


def run(
    model: Model,
    questions: Sequence[Question],
    *,
    execute: bool = False,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Question | Result]:
    """Ask the questions, each in a separate conversation.

    Args:
        model: not a base model.
        execute: run the programs in answers; see `execution`.
        max_tokens: instead of each question's limit.

    Raises:
        UsageError: a base model, or a parameter out of bounds.
    """
    if not model.is_chat:
        raise UsageError(
            f"{printable(model.folder.path.name)} is a base model ({model.template.why}): it completes texts and "
            "was not trained to answer questions.",
            hint="Measure it with mixq eval ppl, or ask it anyway with --template NAME.",
        )
    sampling: dict[str, Any] = {"temperature": temperature, "seed": seed}
    SamplingParams.from_kwargs(**sampling, max_tokens=1 if max_tokens is None else max_tokens)  # checks
    session = model.new_session()
    for question in questions:
        if cancel is not None and cancel.is_set():
            return
        yield question
        begun = time.perf_counter()
        limit = question.max_tokens if max_tokens is None else max_tokens
        try:
            events = session.chat(
                [{"role": "user", "content": question.text}], cancel=cancel, max_tokens=limit, **sampling
            )
        except PromptError as error:
            yield Result(question.test, question.language, False, error.message, "", question.text, "", 0.0, 0, 0, 0.0)
            continue
        done = next(event for event in events if isinstance(event, Done))
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


def judge(question: Question, done: Done, *, execute: bool) -> tuple[Verdict, bool]:
    """Return the verdict on an answer, and whether its program was run for it."""
    if done.reason == "length":
        return wrong(f"not finished after {len(done.token_ids)} tokens"), False
    if done.reason == "context":
        return wrong("the context was full before the answer ended"), False
    verdict = check(question.test, question.language, done.text)
    if execute and question.test == "numbers" and unfit(done.text, 10_000) is None:
        return _run_numbers(done.text, verdict)
    if execute and question.test == "snake" and verdict.passed and execution.HAS_TERMINALS:
        return _start_snake(done.text), True
    return verdict, False


def _run_numbers(answer: str, read: Verdict) -> tuple[Verdict, bool]:
    try:
        outcome = execution.run_program(programs.python_code(answer))
    except (SyntaxError, LookupError):
        return read, False
    if outcome.code is None:
        return wrong(f"did not end within {execution.SECONDS:g} s"), True
    if outcome.code:
        return wrong(f"fails: {printable(outcome.last_error)}"), True
    return programs.one_to_hundred(outcome.output), True


def _start_snake(answer: str) -> Verdict:
    """Right is a game that is still running, or has ended without an error, after some seconds in a terminal."""
    outcome = execution.run_program(programs.python_code(answer), seconds=execution.GAME_SECONDS, on_terminal=True)
    if outcome.code:
        return wrong(f"fails when started: {printable(outcome.last_error)}")
    return RIGHT if outcome.output else wrong("draws nothing when started")


@dataclass(frozen=True, slots=True)
class Score:
    """Questions asked, and how many of the answers are right."""

    passed: int
    asked: int


def scores(results: Sequence[Result]) -> tuple[dict[str, Score], dict[str, Score]]:
    """Return the scores by test and by language, in the order of the questions."""
    by_test: dict[str, Score] = {}
    by_language: dict[str, Score] = {}
    for result in results:
        for table, key in ((by_test, result.test), (by_language, result.language)):
            before = table.get(key, Score(0, 0))
            table[key] = Score(before.passed + result.passed, before.asked + 1)
    return by_test, by_language
