"""`mixq eval suite`: the test questions of a Mixtral review, asked and checked automatically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.interrupt import first_interrupt_cancels
from mixq.errors import UsageError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from mixq.engine.model import Model
    from mixq.measure.suite.questions import Question
    from mixq.measure.suite.run import Result, Score

ROW = "{:<10}  {:<2}  {:<4}  {:>7}  {:>6}  {}"  # test, language, verdict, seconds, tokens, answer
VERDICT = 16  # column of the verdict


# The parameters are not named like their flags, so that config.toml's temperature and max_tokens do not change scores.
@takes_groups(without=("quota",))
def suite(
    model: options.ModelArgument = None,
    *,
    only: Annotated[
        list[str] | None,
        options.option("--only", "Ask only this question; can be repeated.  [default: all twelve]", "TEST"),
    ] = None,
    languages: Annotated[
        list[str] | None,
        options.option(
            "--language",
            'Ask only in this language; can be repeated. The test "snake" is in English only.',
            "en|fr|de|es|it",
        ),
    ] = None,
    show: Annotated[bool, options.option("--show", "Print every answer in full.")] = False,
    execute: Annotated[
        bool,
        options.option(
            "--execute",
            "Run the programs that the model writes, with your user's permissions: the numbers program to its "
            "end, Snake for 2 seconds. By default programs are checked without running them.",
        ),
    ] = False,
    most_tokens: Annotated[
        int | None,
        options.option("--max-tokens", "Maximum tokens of an answer.  [default: 500; letter 700; snake 1600]", "N"),
    ] = None,
    heat: Annotated[
        float, options.option("--temperature", "Randomness; 0 always takes the most likely token.", "X")
    ] = 0.0,
    json: options.Json = False,
    runtime: options.Runtime,
) -> None:
    """Ask the test questions of a published Mixtral review, in five languages, and check the answers.

    Tests: numbers, snake, letter, president, shirts, faster, arithmetic, killers, bullets, json, marble, ball.
    Ctrl-C ends the run and shows the answers so far.
    """
    from mixq.measure.suite.questions import LANGUAGES, TEXTS, questions

    asked = questions(
        tuple(options.one_of("--only", name, list(TEXTS)) for name in only or TEXTS),
        tuple(options.one_of("--language", name, list(LANGUAGES)) for name in languages or LANGUAGES),
    )
    if not asked:
        raise UsageError('No question is left: the test "snake" is in English only.', hint="Add --language en.")
    from mixq.cli.loading import load_model

    loaded = load_model(model, runtime)
    how = {"execute": execute, "max_tokens": most_tokens, "temperature": heat, "seed": runtime.seed}
    results = _ask(loaded, asked, how, show=show, silent=json)
    if json:
        output.print_json(_document(loaded, results, how, complete=len(results) == len(asked)))
    elif results:
        _print_scores(results)
    if len(results) < len(asked):
        output.warn(f"interrupted: {len(results)} of {len(asked)} questions were answered.")
        raise KeyboardInterrupt


def _ask(model: Model, asked: Sequence[Question], how: Mapping[str, Any], *, show: bool, silent: bool) -> list[Result]:
    """Ask the questions, printing a line for each answer; return what was answered before Ctrl-C."""
    from mixq.measure.suite.questions import LANGUAGES, Question
    from mixq.measure.suite.run import run

    results: list[Result] = []
    console = output.console()
    with first_interrupt_cancels() as cancel:
        events = run(model, asked, cancel=cancel, **how)
        event = next(events, None)  # refuses a base model before the header is printed
        status = output.talk().status("") if silent or not console.is_terminal else console.status("")
        if not silent:
            console.print(ROW.format("test", "", "", "s", "tokens", "answer, or what is wrong with it"), style="dim")
        with status:
            while event is not None:
                if isinstance(event, Question):
                    number = f"{len(results) + 1} of {len(asked)}"
                    status.update(f"{event.test}, in {LANGUAGES[event.language]} ({number})")
                else:
                    results.append(event)
                    if not silent:
                        _print_result(console, event, show=show)
                event = next(events, None)
    return results


def _print_result(console: Console, result: Result, *, show: bool) -> None:
    from rich.text import Text

    from mixq.chat.safe_text import harmless

    verdict = "ok" if result.passed else "FAIL"
    line = _first_line(result.answer) if result.passed else result.reason
    seconds = f"{result.seconds:.1f}"
    text = Text(ROW.format(result.test, result.language, verdict, seconds, result.tokens, printable(line)))
    text.stylize("green" if result.passed else "red", VERDICT, VERDICT + len(verdict))
    if console.is_terminal:
        text.truncate(console.width, overflow="ellipsis")
    console.print(text, soft_wrap=True)
    if show:
        for mark, style, said in ((">", "dim", result.prompt), ("|", "", result.answer)):
            for each in harmless(said).splitlines() or [""]:
                console.print(f"  {mark} {each}", style=style, soft_wrap=True)
        console.print()


def _first_line(answer: str) -> str:
    """Return the first line that is not blank and not a fence."""
    lines = (line.strip() for line in answer.splitlines())
    return next((line for line in lines if line and not line.startswith(("```", "~~~"))), "")


def _print_scores(results: Sequence[Result]) -> None:
    from mixq.measure.suite.questions import LANGUAGES
    from mixq.measure.suite.run import scores

    by_test, by_language = scores(results)
    passed = sum(result.passed for result in results)
    seconds, tokens = sum(result.seconds for result in results), sum(result.tokens for result in results)
    console = output.console()
    console.print()
    console.print(_scored(by_test))
    console.print(_scored({LANGUAGES[language]: score for language, score in by_language.items()}))
    console.print(f"{passed} of {len(results)} right, {tokens} tokens in {seconds:.0f} s", style="bold")


def _scored(scored: Mapping[str, Score]) -> str:
    return " · ".join(f"{name} {score.passed}/{score.asked}" for name, score in scored.items())


def _document(model: Model, results: Sequence[Result], how: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """Return what --json prints."""
    from importlib.metadata import version
    from platform import python_version

    from mixq.cli.show import describe
    from mixq.formats.folder import ModelFolder
    from mixq.measure.suite.run import VERSION, scores

    by_test, by_language = scores(results)
    shape = describe(model.folder) if isinstance(model.folder, ModelFolder) else {}
    own = {"weights_bytes": model.folder.nbytes, "context": model.context, "template": model.template.name}
    return {
        "model": str(model.folder.path),
        "facts": {**shape, **own},
        "placement": model.placement.as_dict(),
        "versions": {
            "suite": VERSION,
            "mixq": version("mixq"),
            "torch": version("torch"),
            "python": python_version(),
        },
        "settings": dict(how),
        "complete": complete,
        "passed": sum(result.passed for result in results),
        "asked": len(results),
        "by_test": {name: asdict(score) for name, score in by_test.items()},
        "by_language": {name: asdict(score) for name, score in by_language.items()},
        "results": [asdict(result) for result in results],
    }
