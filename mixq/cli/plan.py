"""`mixq plan`: what a model will take of a computer and how fast it will be, before the download."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.config import RuntimeOptions, did_you_mean, format_size, parse_size
from mixq.errors import DoesNotFitError, UsageError, printable
from mixq.system import paths

if TYPE_CHECKING:
    from rich.table import Table

    from mixq.config import ModelConfig
    from mixq.formats.folder import ModelFolder
    from mixq.plan.computer import Computer
    from mixq.plan.planner import Plan
    from mixq.plan.sizes import ModelSizes

DEFAULT_MODEL = "mixtral-8x7b"
FORMATS = ("nl4", "all-nl4", "w4", "w8", "bf16")
"""What a model that is not quantized yet is planned in; the first unless asked."""

REPOSITORIES = {
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "llama-2-70b": "meta-llama/Llama-2-70b-chat-hf",
}


@takes_groups(without=("threads", "quota", "template", "seed"))
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, a name in the model store, or mixtral-8x7b, mixtral-8x22b, mistral-7b, llama-2-70b.",
            autocompletion=options.complete_model,
        ),
    ] = DEFAULT_MODEL,
    *,
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware",
            metavar="FILE|PRESET",
            help="Another computer: a hardware file (mixq doctor --save), or laptop-8gb, rtx-3060-12gb, rtx-4090, "
            "cpu-laptop.  [default: this one]",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="|".join(FORMATS), help="Of a model that is not quantized yet.  [default: nl4]"
        ),
    ] = None,
    runtime: options.Runtime,
    disk: Annotated[
        str | None, typer.Option("--disk", metavar="SIZE", help="Disk space to use.  [default: what is free]")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure this computer again.")] = False,
    json: options.Json = False,
) -> None:
    """Show the memory placement and the expected speed.

    Nothing is downloaded or loaded. Example: mixq plan mixtral-8x7b --hardware laptop-8gb --context 32768
    """
    from mixq.plan.planner import plan as make_plan

    computer = _computer(hardware, runtime, refresh=refresh)
    candidates = _candidates(model, format)
    space = parse_size(disk) if disk is not None else paths.free_space(paths.store()) if hardware is None else None
    made = make_plan(candidates[0], computer, runtime)
    others = [_compared(sizes, computer, runtime) for sizes in candidates] if len(candidates) > 1 else []
    command = _command(model, made, runtime, lies_here=len(candidates) == 1)
    lack = None if len(candidates) == 1 else _disk_note(made, space)
    if json:
        notes = [*made.notes, *([lack] if lack else [])]
        output.print_json({**made.as_dict(), "notes": notes, "command": command, "formats": others})
        return
    _print(made, others, command)
    for line in (*made.notes, *([lack] if lack else [])):
        output.warn(line)


def _computer(hardware: str | None, asked: RuntimeOptions, *, refresh: bool) -> Computer:
    """Return the computer that is planned for."""
    from mixq.plan.presets import find_computer

    if hardware is not None:
        if refresh:
            raise UsageError("--refresh measures this computer, and --hardware names another.", hint="Leave one out.")
        if asked.device == "sim":
            raise UsageError("--device sim is a GPU that this computer plays.", hint="Leave --hardware out.")
        return find_computer(hardware)
    from mixq.measure.machine import probe
    from mixq.measure.machine.probe_gpu import simulated

    if refresh or probe.cached() is None or asked.device == "sim":
        output.note("Measuring this computer: some seconds.")
    found = probe.probe(refresh=refresh)
    return simulated(found, asked.vram) if asked.device == "sim" else found


def _candidates(model: str, format: str | None) -> list[ModelSizes]:
    """Return the sizes of a model in each of the formats that it could have, the one that is planned first.

    Raises:
        UsageError: an unknown format, or one for a folder that has its own.
        ModelFileError: no such model.
    """
    from mixq.models.presets import PRESETS

    if format is not None and format not in FORMATS:
        raise UsageError(
            f"--format is {printable(repr(format))}; it must be one of {', '.join(FORMATS)}."
            + did_you_mean(format, FORMATS)
        )
    if model in PRESETS:
        from mixq.config import ModelConfig

        return _in_formats(model, ModelConfig.from_dict(PRESETS[model]), format or FORMATS[0])
    from mixq.formats.folder import ModelFolder
    from mixq.plan.sizes import ModelSizes
    from mixq.system.paths import resolve_model

    try:
        opened = ModelFolder.open(resolve_model(model))
    except Exception:
        suggestion = did_you_mean(model.lower(), PRESETS)
        if suggestion:
            raise UsageError(f"{printable(model)} is no model folder and no preset.{suggestion}") from None
        raise
    if opened.quantization is None:
        return _in_formats(opened.path.name, opened.config, format or "bf16")
    if format is not None:
        raise UsageError(
            f"{printable(model)} is quantized already, so --format has no meaning.", hint="Leave --format out."
        )
    return [ModelSizes.of_weights(opened, _scheme(opened))]


def _scheme(folder: ModelFolder) -> str:
    """Return the scheme that most weights of a folder's layers have."""
    from mixq.formats.architecture import parameters
    from mixq.formats.packed import PackedLinear

    weights: Counter[str] = Counter()
    for parameter in parameters(folder.config):
        if parameter.quantizable and parameter.role != "lm_head":
            weight = folder.linear(parameter.module)
            weights[weight.scheme.name if isinstance(weight, PackedLinear) else "bf16"] += parameter.numel
    return weights.most_common(1)[0][0]


def _in_formats(name: str, config: ModelConfig, first: str) -> list[ModelSizes]:
    from mixq.plan.sizes import ModelSizes

    return [ModelSizes.of_format(name, format, config) for format in dict.fromkeys((first, *FORMATS))]


def _compared(sizes: ModelSizes, computer: Computer, asked: RuntimeOptions) -> dict[str, Any]:
    """Return what is said of a format beside the others."""
    from mixq.plan.planner import plan as make_plan

    row: dict[str, Any] = {"format": sizes.format, "weights_bytes": sizes.total}
    try:
        made = make_plan(sizes, computer, asked)
    except (DoesNotFitError, UsageError) as error:  # the latter: how fast the disk reads is not known
        return {**row, "fits": False, "why_not": error.message}
    return {
        **row,
        "fits": made.shares.experts_in_ram == sizes.expert_count,
        "expert_slots": 0 if made.shares.memory is None else made.shares.memory.slots,
        "tokens_per_second": made.decode.expected,
        "prompt_tokens_per_second": made.prefill.expected,
    }


def _disk_note(made: Plan, space: int | None) -> str | None:
    needed = made.sizes.total
    if space is None or needed <= space:
        return None
    return f"The folder takes {format_size(needed)} of disk; {format_size(space)} are free."


def _command(model: str, made: Plan, asked: RuntimeOptions, *, lies_here: bool) -> str:
    """Return the command that does what was planned.

    Args:
        lies_here: the folder is in the format that was planned.
    """
    flags = []
    for name in ("device", "context", "kv", "miss", "cache_policy"):
        if (value := getattr(asked, name)) != getattr(options.DEFAULTS, name):
            flags.append(f"--{name.replace('_', '-')} {value}")
    for name in ("vram", "ram"):
        if (value := getattr(asked, name)) is not None:
            flags.append(f"--{name} {value}")
    format = made.sizes.format
    how = {"nl4": "", "all-nl4": " --mix all-nl4"}.get(format, f" --format {format}")
    if model not in REPOSITORIES:
        folder = shlex.quote(printable(model))
        if lies_here or format == "bf16":
            return " ".join(["mixq chat", folder, *flags])
        made_of_it = shlex.quote(printable(f"{model.rstrip('/')}-{format}"))
        return f"mixq quantize {folder} {made_of_it}{how} && " + " ".join(["mixq chat", made_of_it, *flags])
    repository = REPOSITORIES[model]
    if format == "bf16":
        return " ".join(["mixq chat", "FOLDER", *flags])
    name = repository.split("/")[1].lower() + (f"-{format}" if format not in ("nl4", "all-nl4") else "")
    return f"mixq pull {repository}{how} && " + " ".join(["mixq chat", name, *flags])


def _print(made: Plan, others: list[dict[str, Any]], command: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
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
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("where", "what"):
        table.add_column(name)
    table.add_column("size", justify="right")
    last = ""
    for place in made.shares.places:
        table.add_row(place.where if place.where != last else "", place.what, format_size(place.nbytes))
        last = place.where
    return table


def _formats(others: list[dict[str, Any]], made: Plan) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("format")
    for name in ("size", "experts in GPU memory", "decode", "prompt"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in others:
        known = "tokens_per_second" in row
        table.add_row(
            row["format"],
            format_size(row["weights_bytes"]),
            str(row["expert_slots"]) if known and made.shares.memory is not None else "",
            f"{_rate(row['tokens_per_second'])}/s" if known else "",
            f"{_rate(row['prompt_tokens_per_second'])}/s" if known else "",
            "" if row["fits"] else "with the disk" if known else "does not fit",
        )
    return table


def _rate(tokens_per_second: float) -> str:
    return (
        f"{tokens_per_second:.0f}"
        if tokens_per_second >= 100
        else f"{tokens_per_second:.2g}"
        if (tokens_per_second < 10)
        else f"{tokens_per_second:.0f}"
    )
