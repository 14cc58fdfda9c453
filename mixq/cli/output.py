"""Results go to standard output; notes, warnings and errors go to standard error.

Contract: with `--json` a command prints exactly one document, with `print_json`. Text that a model wrote is printed by
`model_text`, the one place where control sequences are made harmless; where standard output is not a terminal the text
is unchanged, so that redirected data stay exact.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mixq.errors import MixqError

if TYPE_CHECKING:
    from rich.console import Console

    from mixq.engine.events import Done
    from mixq.engine.model import Model


@lru_cache(maxsize=1)
def talk() -> Console:
    """Return the console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def console() -> Console:
    """Return a console on standard output, for tables."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def note(text: str) -> None:
    """Print information that needs no action."""
    talk().print(text, style="dim")


def warn(text: str) -> None:
    """Print a warning."""
    _print_labelled("Warning: ", "bold yellow", text)


def print_error(error: MixqError) -> None:
    """Print what went wrong and what to do next."""
    _print_labelled("Error: ", "bold red", error.message)
    if error.hint:
        talk().print(error.hint)


def _print_labelled(label: str, style: str, text: str) -> None:
    """Print in one call, so that a progress bar in the same terminal cannot split the line."""
    from rich.text import Text

    talk().print(Text.assemble((label, style), text))


def print_json(document: Any) -> None:
    """Print the one document of `--json`; NaN and infinity, which JSON does not have, raise ValueError."""
    import json

    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def error_document(error: MixqError) -> dict[str, Any]:
    """Return what `--json` prints in place of a result."""
    kind = type(error).__name__
    return {"error": {"kind": kind, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}}


def model_text(text: str) -> None:
    """Write a model's text to standard output and flush: safe for a terminal, exact in a file or pipe."""
    from mixq.chat.safe_text import harmless

    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def run_document(model: Model, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` prints about an answer's model."""
    return {"model": str(model.folder.path), "sampling": sampling, "placement": model.placement.as_dict()}


def answer_document(done: Done) -> dict[str, Any]:
    """Return one answer as `--json` prints it."""
    return {
        "text": done.text,
        "token_ids": list(done.token_ids),
        "finish_reason": done.reason,
        "stats": done.stats.as_dict(),
    }


def stats_line(done: Done) -> str:
    """Return an answer's statistics in one line, and those of its experts in another."""
    from mixq.chat.status import speed

    stats = done.stats
    prompt = f"{stats.prompt_tokens} tokens in ({speed(stats.prompt_tokens_per_second)})"
    reply = f"{len(done.token_ids)} out ({speed(stats.decode_tokens_per_second)})"
    first = f"first {stats.time_to_first_token:.2f} s"
    line = f"{prompt} · {reply} · {first} · context {stats.context_used}/{stats.context_size}"
    experts = stats.experts.line() if stats.experts is not None else ""
    return f"{line}\n{experts}" if experts else line
