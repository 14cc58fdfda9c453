"""`mixq chat`: talk with a model at the terminal, or answer lines of standard input."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from mixq.cli import options, output
from mixq.config import RuntimeOptions
from mixq.errors import PromptError, UsageError

if TYPE_CHECKING:
    from mixq.engine import Model

DEFAULTS = RuntimeOptions()


def chat(
    model: options.ModelArgument = None,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    json: options.Json = False,
    device: options.Device = DEFAULTS.device,
    vram: options.Vram = None,
    ram: options.Ram = None,
    context: options.Context = DEFAULTS.context,
    threads: options.Threads = None,
    kv: options.Kv = DEFAULTS.kv,
    miss: options.Miss = DEFAULTS.miss,
    cache_policy: options.CachePolicy = DEFAULTS.cache_policy,
    seed: options.Seed = None,
) -> None:
    """Chat with a model.

    At the prompt, /help lists the commands and Ctrl-C stops a reply. When standard input is not a terminal, each of its
    lines is answered as a conversation of its own, so that one answer does not depend on another.
    """
    if json and sys.stdin.isatty():
        raise UsageError("--json is for input from a pipe or file, not for a chat at the terminal.")
    from mixq.cli.loading import load_model
    from mixq.generation_config import default_sampling
    from mixq.sampling import SamplingParams

    loaded = load_model(
        model,
        {
            "device": device,
            "vram": vram,
            "ram": ram,
            "context": context,
            "threads": threads,
            "kv": kv,
            "miss": miss,
            "cache_policy": cache_policy,
            "seed": seed,
        },
    )
    sampling = default_sampling(loaded.folder.generation_config) | options.given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        stop=stop,
        seed=seed,
    )
    SamplingParams.from_kwargs(**sampling)  # a flag out of bounds is refused before the first prompt
    _ = loaded.tokenizer  # and so is a folder without one
    if sys.stdin.isatty():
        _talk(loaded, sampling, system or "", "the demo model" if model is None else loaded.folder.path.name)
    else:
        _answer_lines(loaded, sampling, system or "", json=json)


def _talk(model: Model, sampling: dict[str, Any], system: str, name: str) -> None:
    from mixq.cli.conversation import Conversation
    from mixq.cli.repl import Repl
    from mixq.config import format_size
    from mixq.errors import printable

    size = format_size(model.folder.nbytes)
    output.note(f"{printable(name)} · {size} · context {model.context} · /help for commands, Ctrl-D to leave")
    Repl(Conversation(model.new_session, sampling, system), _line_reader(), model.stats).run()


def _line_reader() -> Callable[[], str]:
    """Return a function that asks for a line, with editing and history where Python has readline."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (imported for its effect on input())
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")

    def read_line() -> str:
        if sys.stdout.isatty():
            return input("> ")
        sys.stderr.write("> ")  # input() would put its prompt among the data
        sys.stderr.flush()
        return input()

    return read_line


def _answer_lines(model: Model, sampling: dict[str, Any], system: str, *, json: bool) -> None:
    """Answer each line; one that cannot be answered is said, and costs the others nothing but the exit code."""
    from mixq.cli.conversation import Conversation
    from mixq.cli.interrupt import first_interrupt_cancels
    from mixq.cli.reading import utf8

    show = (lambda _: None) if json else output.model_text
    answers: list[dict[str, Any]] = []
    code, cancelled = 0, False
    for number, data in enumerate(sys.stdin.buffer, 1):
        line = data.rstrip(b"\r\n")
        if not line.strip():
            continue
        try:
            prompt = utf8(line, f"line {number} of standard input")
            with first_interrupt_cancels() as cancel:
                done = Conversation(model.new_session, sampling, system).ask(prompt, show, cancel=cancel)
        except PromptError as error:
            output.print_error(error)
            answers.append({"prompt": line.decode("utf-8", "replace"), **output.error_document(error)})
            code = error.exit_code
            continue
        show("" if done.text.endswith("\n") else "\n")
        answers.append({"prompt": prompt, **output.answer_document(done)})
        cancelled = done.reason == "cancelled"
        if cancelled:
            break
    if json:
        placement = model.placement.as_dict()
        output.print_json(
            {"model": str(model.folder.path), "sampling": sampling, "placement": placement, "answers": answers}
        )
    if cancelled:
        raise KeyboardInterrupt
    if code:
        raise typer.Exit(code)  # the error has been reported already
