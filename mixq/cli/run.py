"""`mixq run`: answer one prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.input import utf8
from mixq.cli.interrupt import first_interrupt_cancels
from mixq.errors import PromptError

if TYPE_CHECKING:
    from mixq.engine.events import Done
    from mixq.engine.model import Model


@takes_groups()
def run(
    model: options.ModelArgument = None,
    *,
    prompt: Annotated[
        str | None,
        options.option(
            "--prompt", "The prompt; - reads standard input, which is also the default for a pipe.", "TEXT", short="-p"
        ),
    ] = None,
    raw: Annotated[bool, options.option("--raw", "Continue the text, without a chat template.")] = False,
    system: options.System = None,
    sampling: options.Sampling,
    json: options.Json = False,
    quiet: options.Quiet = False,
    runtime: options.Runtime,
) -> None:
    """Answer one prompt.

    The answer is printed token by token; with --json, text, token ids and statistics are printed at the end.
    """
    text = _read_prompt(prompt)
    from mixq.cli.loading import load_model
    from mixq.engine.sampling import default_sampling

    loaded = load_model(model, runtime)
    chosen = sampling.over(default_sampling(loaded.folder.generation_config))
    done = _answer(loaded, text, raw=raw, system=system or "", sampling=chosen, stream=not json)
    if json:
        output.print_json({**output.run_document(loaded, chosen), **output.answer_document(done)})
    elif not done.text.endswith("\n"):
        output.model_text("\n")
    if not quiet and not json:
        output.note(output.stats_line(done))
    if done.reason == "cancelled":
        raise KeyboardInterrupt


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise PromptError("No prompt.", hint='Use -p "...", or pipe text into the command.')
    if prompt is None or prompt == "-":
        text = utf8(sys.stdin.buffer.read(), "standard input").removesuffix("\n")
    else:
        text = prompt
    if not text.strip():
        raise PromptError("The prompt is empty.", hint='Use some text: mixq run -p "..."')
    return text


def _answer(model: Model, text: str, *, raw: bool, system: str, sampling: dict[str, Any], stream: bool) -> Done:
    from mixq.chat.dialogue import show_events
    from mixq.text.chat_template import Message

    if raw and system:
        raise PromptError(
            "--raw cannot be combined with a system prompt.", hint="Put it into the prompt, or omit --raw."
        )
    if not raw and not model.is_chat:
        if system:
            raise PromptError("A base model has no system prompt.", hint="Put it into the prompt.")
        output.note(f"No chat template: {model.template.why}. The model continues the text.")
        raw = True
    messages = [Message("system", system)] if system else []
    with first_interrupt_cancels() as cancel:
        if raw:
            events = model.generate(text, cancel=cancel, **sampling)
        else:
            events = model.chat([*messages, Message("user", text)], cancel=cancel, **sampling)
        done = show_events(events, output.model_text if stream else lambda _: None, warn=output.warn)
    assert done is not None
    return done
