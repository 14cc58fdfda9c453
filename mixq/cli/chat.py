"""`mixq chat`: chat with a model in the terminal, or answer lines from standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.input import utf8
from mixq.cli.interrupt import Terminated, first_interrupt_cancels, termination_interrupts
from mixq.errors import PromptError, UsageError

if TYPE_CHECKING:
    from mixq.chat.state import Loaded, Models
    from mixq.config import RuntimeOptions
    from mixq.engine.events import Event
    from mixq.engine.model import Model


@takes_groups()
def chat(
    model: options.ModelArgument = None,
    *,
    system: options.System = None,
    sampling: options.Sampling,
    json: options.Json = False,
    plain: Annotated[bool, options.flag("--plain", "Print replies as plain text, without Markdown.")] = False,
    history: Annotated[
        bool, options.flag("--history/--no-history", "Save what you type, so that the arrow keys recall it.")
    ] = True,
    runtime: options.Runtime,
) -> None:
    """Chat with a model.

    At the prompt, /help lists the commands and Ctrl-C stops a reply. When standard input is not a terminal, each line
    is answered as a separate conversation.
    """
    if json and sys.stdin.isatty():
        raise UsageError("--json needs input from a pipe or file, not a terminal.")
    from mixq.chat.state import Models

    models = Models(lambda name: _load(name, runtime, sampling))
    if sys.stdin.isatty():
        _talk(models, model, system or "", plain=plain, history=history)
    else:
        loaded = models.load(model)
        _answer_lines(loaded.model, dict(loaded.sampling), system or "", json=json)


def _load(name: str | None, runtime: RuntimeOptions, flags: options.SamplingFlags) -> Loaded:
    from mixq.chat.state import Loaded
    from mixq.cli.loading import load_model
    from mixq.engine.sampling import SamplingParams, default_sampling

    model = load_model(name, runtime)
    sampling = flags.over(default_sampling(model.folder.generation_config))
    SamplingParams.from_kwargs(**sampling)  # refuses flags out of bounds before the first prompt
    _ = model.tokenizer  # refuses a folder without one
    return Loaded(name, model, sampling)


def _talk(models: Models, name: str | None, system: str, *, plain: bool, history: bool) -> None:
    from mixq.chat.chat import Chat
    from mixq.chat.history import history_file
    from mixq.chat.input import LineInput
    from mixq.chat.terminal import Terminal

    terminal = Terminal(plain=plain)
    # The chat holds the only reference to the model, so that /model can free it.
    chat = Chat(models.load(name), models, terminal, system)
    prompt = LineInput(chat.status_line, history_file() if history else None)
    if prompt.problem is not None:
        terminal.warn(prompt.problem)
    try:
        with termination_interrupts():
            chat.run(prompt.read)
    except Terminated:
        raise typer.Exit(Terminated.exit_code) from None


def _answer_lines(model: Model, sampling: dict[str, Any], system: str, *, json: bool) -> None:
    """Answer each line; report lines that cannot be answered, and set the exit code."""
    from mixq.chat.dialogue import Dialogue, show_events

    show: Callable[[str], None] = (lambda _: None) if json else output.model_text
    answers: list[dict[str, Any]] = []
    code, cancelled = 0, False
    for number, data in enumerate(sys.stdin.buffer, 1):
        line = data.rstrip(b"\r\n")
        if not line.strip():
            continue
        try:
            prompt = utf8(line, f"line {number} of standard input")
            with first_interrupt_cancels() as cancel:
                events: Iterator[Event] = Dialogue(model, sampling, system).ask(prompt, cancel)
                done = show_events(events, show, warn=output.warn)
        except PromptError as error:
            output.print_error(error)
            answers.append({"prompt": line.decode("utf-8", "replace"), **output.error_document(error)})
            code = error.exit_code
            continue
        assert done is not None
        show("" if done.text.endswith("\n") else "\n")
        answers.append({"prompt": prompt, **output.answer_document(done)})
        cancelled = done.reason == "cancelled"
        if cancelled:
            break
    if json:
        output.print_json({**output.run_document(model, sampling), "answers": answers})
    if cancelled:
        raise KeyboardInterrupt
    if code:
        raise typer.Exit(code)  # the error has been reported already
