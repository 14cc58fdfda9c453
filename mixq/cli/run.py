"""`mixq run`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixq.cli import options, output
from mixq.config import RuntimeOptions
from mixq.errors import PromptError

if TYPE_CHECKING:
    from mixq.engine.events import Done
    from mixq.engine.model import Model

DEFAULTS = RuntimeOptions()


def run(
    model: options.ModelArgument = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt; - reads standard input, and so does a pipe."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Go on from the text as it is, without the chat format.")] = False,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    device: options.Device = DEFAULTS.device,
    vram: options.Vram = None,
    ram: options.Ram = None,
    context: options.Context = DEFAULTS.context,
    threads: options.Threads = None,
    kv: options.Kv = DEFAULTS.kv,
    miss: options.Miss = DEFAULTS.miss,
    cache_policy: options.CachePolicy = DEFAULTS.cache_policy,
    quota: options.Quota = None,
    template: options.Template = None,
    seed: options.Seed = None,
) -> None:
    """Answer one prompt.

    The answer goes to standard output as it is made; with --json, text, token ids and figures once it is whole.
    """
    text = _read_prompt(prompt)
    from mixq.cli.loading import load_model
    from mixq.engine.generation_config import default_sampling

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
            "quota": quota,
            "template": template,
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
    done = _answer(loaded, text, raw=raw, system=system or "", sampling=sampling, stream=not json)
    if json:
        output.print_json(
            {
                "model": str(loaded.folder.path),
                "sampling": sampling,
                "placement": loaded.placement.as_dict(),
                **output.answer_document(done),
            }
        )
    elif not done.text.endswith("\n"):
        output.model_text("\n")
    if not quiet and not json:
        output.note(output.stats_line(done))
    if done.reason == "cancelled":
        raise KeyboardInterrupt


def _read_prompt(prompt: str | None) -> str:
    from mixq.cli.reading import utf8

    if prompt is None and sys.stdin.isatty():
        raise PromptError("There is no prompt.", hint='Give one with -p "...", or pipe a text into the command.')
    if prompt is None or prompt == "-":
        text = utf8(sys.stdin.buffer.read(), "standard input").removesuffix("\n")
    else:
        text = prompt
    if not text.strip():
        raise PromptError("The prompt is empty.", hint='Give some text: mixq run -p "..."')
    return text


def _answer(model: Model, text: str, *, raw: bool, system: str, sampling: dict[str, Any], stream: bool) -> Done:
    from mixq.chat.conversation import show_events
    from mixq.cli.interrupt import first_interrupt_cancels
    from mixq.text.chat_template import Message

    if raw and system:
        raise PromptError("--raw has no place for a system text.", hint="Put it into the prompt, or leave out --raw.")
    if not raw and not model.is_chat:
        if system:
            raise PromptError("A base model has no place for a system text.", hint="Put it into the prompt.")
        output.note(f"No chat format: {model.template.why}. The model goes on from the text.")
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
