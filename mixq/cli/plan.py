"""`mixq plan`: the memory that a model needs and its expected speed, before the download."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.plan_report import command_of, print_plan
from mixq.config import ModelConfig, RuntimeOptions, format_size, parse_size
from mixq.errors import DoesNotFitError, MixqError, UsageError, did_you_mean, printable
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.formats.folder import ModelFolder
    from mixq.plan.computer import Computer
    from mixq.plan.sizes import ModelSizes

DEFAULT_MODEL = "mixtral-8x7b"
FORMATS = ("nl4", "all-nl4", "w4", "w8", "bf16")
"""The formats for plans of an unquantized model; the first is the default."""


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
        options.option(
            "--hardware",
            "Another computer: a hardware file (mixq doctor --save), or laptop-8gb, rtx-3060-12gb, rtx-4090, "
            "cpu-laptop.  [default: this one]",
            "FILE|PRESET",
        ),
    ] = None,
    format: Annotated[
        str | None,
        options.option(
            "--format",
            "Format to plan for, if the model is not quantized yet.  [default: nl4 for a preset, bf16 for a folder]",
            "|".join(FORMATS),
        ),
    ] = None,
    runtime: options.Runtime,
    disk: Annotated[
        str | None,
        options.option("--disk", "Disk space to assume for the model folder.  [default: what is free]", "SIZE"),
    ] = None,
    refresh: Annotated[bool, options.option("--refresh", "Measure this computer again.")] = False,
    json: options.Json = False,
) -> None:
    """Predict memory use, speed and bottleneck, without loading the model.

    Nothing is downloaded or loaded. Example: mixq plan mixtral-8x7b --hardware laptop-8gb --context 32768
    """
    from mixq.plan.planner import plan as make_plan

    space = None if disk is None else parse_size(disk)
    computer = _computer(hardware, runtime, refresh=refresh)
    candidates = _candidates(model, format)
    made = make_plan(candidates[0], computer, runtime)
    others = [_compared(sizes, computer, runtime) for sizes in candidates] if len(candidates) > 1 else []
    command = command_of(model, made, runtime, is_folder=len(candidates) == 1)
    if space is None and hardware is None:
        space = paths.free_space(paths.store())
    notes = list(made.notes)
    if len(candidates) > 1 and space is not None and made.sizes.total > space:
        notes.append(f"The folder takes {format_size(made.sizes.total)} of disk; {format_size(space)} are free.")
    if json:
        output.print_json({**made.as_dict(), "notes": notes, "command": command, "formats": others})
        return
    print_plan(made, others, command)
    for line in notes:
        output.warn(line)


def _computer(hardware: str | None, asked: RuntimeOptions, *, refresh: bool) -> Computer:
    """Return the computer to plan for."""
    from mixq.plan.presets import find_computer

    if hardware is not None:
        if refresh:
            raise UsageError(
                "--refresh measures this computer; --hardware names another.", hint="Use only one of them."
            )
        if asked.device == "sim":
            raise UsageError(
                "--device sim simulates a GPU on this computer; --hardware names another.", hint="Use only one of them."
            )
        return find_computer(hardware)
    from mixq.measure.machine import probe
    from mixq.measure.machine.probe_gpu import simulated

    if refresh or probe.cached() is None or asked.device == "sim":
        output.note("Measuring this computer, which takes some seconds.")
    found = probe.probe(refresh=refresh)
    return simulated(found, asked.vram) if asked.device == "sim" else found


def _candidates(model: str, format: str | None) -> list[ModelSizes]:
    """Return the sizes of a model in each format that it could have, the planned one first.

    Raises:
        UsageError: an unknown format, or a format for a folder that is quantized already.
        ModelFileError: no such model.
    """
    from mixq.models.presets import PRESETS

    if format is not None:
        options.one_of("--format", format, FORMATS)
    if model in PRESETS:
        return _in_formats(model, ModelConfig.from_dict(PRESETS[model]), format or FORMATS[0])
    from mixq.formats.folder import ModelFolder
    from mixq.plan.sizes import ModelSizes

    try:
        opened = ModelFolder.open(paths.resolve_model(model))
    except MixqError:
        suggestion = did_you_mean(model.lower(), PRESETS)
        if suggestion:
            raise UsageError(f"{printable(model)} is neither a model folder nor a preset.{suggestion}") from None
        raise
    if opened.quantization is None:
        return _in_formats(opened.path.name, opened.config, format or "bf16")
    if format is not None:
        raise UsageError(f"{printable(model)} is quantized already, so --format has no effect.", hint="Omit --format.")
    return [ModelSizes.of_weights(opened, _scheme(opened))]


def _scheme(folder: ModelFolder) -> str:
    """Return the scheme of most weights in a folder's layers."""
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
    """Return size, speed and whether it fits, of one format."""
    from mixq.plan.planner import plan as make_plan

    row: dict[str, Any] = {"format": sizes.format, "weights_bytes": sizes.total}
    try:
        made = make_plan(sizes, computer, asked)
    except (DoesNotFitError, UsageError) as error:  # UsageError: the speed of the disk is not known
        return {**row, "fits": False, "why_not": error.message}
    return {
        **row,
        "fits": made.shares.experts_in_ram == sizes.expert_count,
        "expert_slots": 0 if made.shares.memory is None else made.shares.memory.slots,
        "tokens_per_second": made.decode.expected,
        "prompt_tokens_per_second": made.prefill.expected,
    }
