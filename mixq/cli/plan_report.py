"""What `mixq plan` prints: the use of memory, the expected speeds, the command to run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixq.cli import output
from mixq.cli.options import DEFAULTS
from mixq.cli.tables import table
from mixq.config import format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from mixq.config import RuntimeOptions
    from mixq.plan.planner import Plan

REPOSITORIES = {
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "llama-2-70b": "meta-llama/Llama-2-70b-chat-hf",
}
"""Where the presets are downloaded from."""


def print_plan(made: Plan, others: Sequence[Mapping[str, Any]], command: str) -> None:
    """Print memory use, speeds, the other formats and the command."""
    console = output.console()
    sizes = made.sizes
    console.print(
        f"{printable(sizes.name)} in {sizes.format}: {format_size(sizes.total)}, of which a token reads "
        f"{format_size(sizes.token)}",
        style="bold",
        soft_wrap=True,
    )
    console.print(f"on {printable(made.computer.name)}", soft_wrap=True)
    console.print()
    console.print(_places(made))
    console.print()
    if made.hit_rate is not None:
        console.print(f"experts  {made.hit_rate:.0%} of expert lookups hit GPU memory")
    for name, speed in (("decode", made.decode), (f"prompt of {made.prompt}", made.prefill)):
        console.print(
            f"{name}  {_rate(speed.expected)} tokens/s ({_rate(speed.low)} to {_rate(speed.high)}), limited by "
            f"{speed.limit}",
            soft_wrap=True,
        )
    if others:
        console.print()
        console.print(_formats(others, made))
    console.print()
    console.print(command, style="bold", soft_wrap=True)


def _places(made: Plan) -> Table:
    shown = table("where", "what", "size", left=("where", "what"))
    last = ""
    for place in made.shares.places:
        shown.add_row(place.where if place.where != last else "", place.what, format_size(place.nbytes))
        last = place.where
    return shown


def _formats(others: Sequence[Mapping[str, Any]], made: Plan) -> Table:
    shown = table("format", "size", "experts in GPU memory", "decode", "prompt", "", left=("format", ""))
    for row in others:
        known = "tokens_per_second" in row
        shown.add_row(
            row["format"],
            format_size(row["weights_bytes"]),
            str(row["expert_slots"]) if known and made.shares.memory is not None else "",
            f"{_rate(row['tokens_per_second'])}/s" if known else "",
            f"{_rate(row['prompt_tokens_per_second'])}/s" if known else "",
            "" if row["fits"] else "with the disk" if known else "does not fit",
        )
    return shown


def _rate(tokens_per_second: float) -> str:
    return f"{tokens_per_second:.2g}" if tokens_per_second < 10 else f"{tokens_per_second:.0f}"


def command_of(model: str, made: Plan, asked: RuntimeOptions, *, is_folder: bool) -> str:
    """Return the command that runs the model as planned.

    Args:
        is_folder: the model is a folder in the planned format.
    """
    flags = []
    for name in ("device", "context", "kv", "miss", "cache_policy"):
        if (value := getattr(asked, name)) != getattr(DEFAULTS, name):
            flags.append(f"--{name.replace('_', '-')} {value}")
    for name in ("vram", "ram"):
        if (value := getattr(asked, name)) is not None:
            flags.append(f"--{name} {value}")
    format = made.sizes.format
    how = {"nl4": "", "all-nl4": " --mix all-nl4"}.get(format, f" --format {format}")
    if model not in REPOSITORIES:
        folder = shlex.quote(printable(model))
        if is_folder or format == "bf16":
            return " ".join(["mixq chat", folder, *flags])
        made_of_it = shlex.quote(printable(f"{model.rstrip('/')}-{format}"))
        return f"mixq quantize {folder} {made_of_it}{how} && " + " ".join(["mixq chat", made_of_it, *flags])
    repository = REPOSITORIES[model]
    if format == "bf16":
        return " ".join(["mixq chat", "FOLDER", *flags])
    name = repository.split("/")[1].lower() + (f"-{format}" if format not in ("nl4", "all-nl4") else "")
    return f"mixq pull {repository}{how} && " + " ".join(["mixq chat", name, *flags])
