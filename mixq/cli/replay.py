"""`mixq replay`: simulate a recording with other memory budgets, cache policies and expert slots per layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.cli.options import DEFAULTS
from mixq.cli.progress import run_progress
from mixq.cli.replay_report import command_of, print_sweep
from mixq.config import CACHE_POLICIES, MISS_MODES, ModelConfig, parse_size
from mixq.errors import UsageError, did_you_mean, is_integer, printable
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.plan.computer import Computer
    from mixq.plan.excerpt import Machine
    from mixq.plan.recording import Recording
    from mixq.plan.sweep import ReplayModel, Sweep

POLICIES = ("lru", "lfu", "static", "belady")
QUOTAS = ("even", "fitted")
POINTS = 6
MOST_POINTS = 64
MOST_EXCERPT = 100_000


def replay(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="A .mqt file written by mixq trace.")],
    vram: Annotated[
        str | None,
        options.option(
            "--vram",
            f"GPU memory: 8GB; a list; 4..24GB, which tries {POINTS} sizes; or 4..24GB:2GB, with a step.  "
            "[default: several sizes, from no expert to all experts in GPU memory]",
            "SIZE,...",
        ),
    ] = None,
    policy: Annotated[
        str,
        options.option("--policy", "Cache policies; comma-separated. belady is the optimal one.", "|".join(POLICIES)),
    ] = ",".join(POLICIES),
    quota: Annotated[
        str,
        options.option(
            "--quota",
            "How to divide the experts in GPU memory among the layers; comma-separated. even: equally; fitted: by "
            "the hits in the recording.",
            "|".join(QUOTAS),
        ),
    ] = ",".join(QUOTAS),
    miss: Annotated[
        str,
        options.option(
            "--miss", "How to compute experts that are not in GPU memory; comma-separated.", "|".join(MISS_MODES)
        ),
    ] = DEFAULTS.miss,
    hardware: Annotated[
        str | None,
        options.option(
            "--hardware",
            "A hardware file (mixq doctor --save), laptop-8gb, rtx-3060-12gb, rtx-4090, or sim for a GPU "
            "simulated on this computer.  [default: this computer]",
            "FILE|PRESET|sim",
        ),
    ] = None,
    model: Annotated[
        str | None,
        options.option(
            "--model",
            "Model whose sizes are used: mixtral-8x7b, mixtral-8x22b or a folder.  [default: the recorded one]",
            "PRESET|DIR",
        ),
    ] = None,
    context: Annotated[int, options.option("--context", "Tokens that the KV cache holds.", "N")] = DEFAULTS.context,
    excerpt: Annotated[
        int | None,
        options.option("--excerpt", "Tokens to simulate for the speed.  [default: chosen between 64 and 256]", "N"),
    ] = None,
    save_quota: Annotated[
        Path | None,
        options.option(
            "--save-quota",
            "Write to a file how many experts of each layer the fastest combination keeps in GPU memory; mixq run, "
            "chat and serve read it with --quota.",
            "FILE",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Simulate a recording with other memory sizes and policies: hits, tokens per second, gap to the optimal policy.

    Hits are counted over the whole recording; tokens per second are simulated over an excerpt of it. Example: mixq
    replay run.mqt --vram 4..24GB --hardware rtx-3060-12gb
    """
    policies = _names(policy, "--policy", POLICIES, CACHE_POLICIES)
    quotas = _names(quota, "--quota", QUOTAS)
    misses = _names(miss, "--miss", MISS_MODES)
    budgets = None if vram is None else parse_budgets(vram)
    options.whole_number("--context", context, 1, 2**31 - 1)
    if excerpt is not None:
        options.whole_number("--excerpt", excerpt, 1, MOST_EXCERPT)
    if save_quota is not None and (budgets is None or len(budgets) != 1):
        raise UsageError("--save-quota needs a single size of GPU memory.", hint="Use one size, such as --vram 8GB.")
    from mixq.plan.recording import Recording
    from mixq.plan.sweep import default_budgets, sweep

    played = Recording.read(recording)
    weights = _replay_model(played, model)
    machine = _machine(hardware, budgets)
    with run_progress("replaying") as update:
        found = sweep(
            played,
            weights,
            machine,
            budgets or default_budgets(weights, context, machine.driver, POINTS),
            policies=policies,
            quotas=quotas,
            misses=misses,
            context=context,
            excerpt=excerpt,
            progress=update,
        )
    if save_quota is not None:
        _save(found, played, recording, save_quota)
    for line in found.notes:
        output.warn(line)
    if json:
        output.print_json({"recording": str(recording), **found.as_dict()})
    else:
        print_sweep(found)
        if save_quota is not None:
            typer.echo("\n" + command_of(found, save_quota, context))


def parse_budgets(text: str) -> list[int]:
    """Return the bytes of sizes, lists and ranges: 8GB,12GB or 4..24GB or 4..24GB:2GB.

    Raises:
        UsageError: not a size, list or range; an empty range; or too many budgets.
    """
    found: set[int] = set()
    for item in text.split(","):
        low, dots, rest = item.strip().partition("..")
        if not dots:
            found.add(parse_size(low))
            continue
        high, colon, step = rest.partition(":")
        unit = high.strip().lstrip("0123456789.")
        first = parse_size(low if low.strip().lstrip("0123456789.") else f"{low}{unit}")
        last = parse_size(high)
        if first >= last:
            raise UsageError(f"--vram: the range {printable(item)} ends below its start.", hint="Write it as 4..24GB.")
        if not colon:
            found |= {first + (last - first) * i // (POINTS - 1) for i in range(POINTS)}
            continue
        stride = parse_size(step)
        if not 0 < stride <= last - first or (last - first) // stride >= MOST_POINTS:
            raise UsageError(
                f"--vram: the step {printable(step)} does not fit the range {printable(item)}.",
                hint=f"A range has at most {MOST_POINTS} sizes, such as 4..24GB:4GB.",
            )
        found |= set(range(first, last + 1, stride))
    if not found or min(found) < 1 or len(found) > MOST_POINTS:
        raise UsageError(f"--vram is {printable(repr(text))}; it must be 1 to {MOST_POINTS} sizes above 0.")
    return sorted(found)


def _names(text: str, flag: str, known: tuple[str, ...], elsewhere: tuple[str, ...] = ()) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            why = ", and it cannot be simulated" if name in elsewhere else ""
            raise UsageError(
                f"{flag} {printable(repr(name))} is not one of {', '.join(known)}{why}." + did_you_mean(name, known)
            )
    return list(dict.fromkeys(names))


def _replay_model(recording: Recording, model: str | None) -> ReplayModel:
    """Return the sizes of the model to assume."""
    from mixq.plan.sweep import ReplayModel

    if model is None:
        facts = recording.facts
        if facts.cost is None:
            raise UsageError(
                "The recording does not contain the sizes of its model.", hint="Name a model: --model mixtral-8x7b."
            )
        workspace = facts.settings.get("workspace_bytes", 0)
        return ReplayModel(facts.model, facts.cost, workspace if is_integer(workspace, 0, 2**50) else 0)
    from mixq.config import PREFILL_CHUNK
    from mixq.experts.memory_plan import workspace_bytes
    from mixq.models.presets import PRESETS
    from mixq.plan.sizes import ModelSizes

    if model in PRESETS:
        config = ModelConfig.from_dict(PRESETS[model])
        sizes = ModelSizes.of_format(model, "nl4", config)
    else:
        from mixq.formats.folder import ModelFolder

        sizes = ModelSizes.of_weights(ModelFolder.open(paths.resolve_model(model)), "")
    if not sizes.config.is_moe:
        raise UsageError(
            f"{printable(model)} has no experts, so there is nothing to cache.", hint="Name a model with experts."
        )
    return ReplayModel(sizes.name, sizes.cost(), workspace_bytes(sizes.config, PREFILL_CHUNK))


def _machine(name: str | None, budgets: list[int] | None) -> Machine:
    """Return the machine to simulate."""
    from mixq.plan.excerpt import Machine
    from mixq.plan.presets import COMPUTERS, find_computer

    if name is not None and name != "sim":
        computer = find_computer(name)
    else:
        computer = _this_computer(max(budgets) if budgets else None, simulated=name == "sim")
    for line in computer.marks:
        output.warn(line)
    if computer.gpu is None:
        with_gpu = ", ".join(key for key, preset in COMPUTERS.items() if preset.gpu is not None)
        raise UsageError(
            f"{printable(computer.name)} has no GPU, so there is no expert cache.",
            hint=f"Name another computer: --hardware FILE, {with_gpu} or sim.",
        )
    from mixq.experts.accelerators.cuda import DRIVER_BYTES

    pass_seconds, layer_seconds = computer.cpu.pass_seconds, computer.gpu.layer_seconds
    if name == "sim":  # the CPU's cores do the GPU's work too
        return Machine(computer.hardware(), pass_seconds, layer_seconds + computer.cpu.layer_seconds)
    return Machine(computer.hardware(), pass_seconds, layer_seconds, DRIVER_BYTES)


def _this_computer(vram: int | None, *, simulated: bool) -> Computer:
    from mixq.measure.machine.probe import probe

    found = probe()
    if not simulated:
        return found
    from mixq.measure.machine.probe_gpu import simulated as with_simulated

    return with_simulated(found, vram)


def _save(found: Sweep, recording: Recording, source: Path, path: Path) -> None:
    from mixq.experts.quota import Quotas

    best = found.best
    if found.layers != recording.facts.layers:
        raise UsageError(
            f"--save-quota: --model has {found.layers} layers, but the recording has {recording.facts.layers}.",
            hint="Omit --model, or record the model that you want to run.",
        )
    why = f"{source.name}: {best.policy}, {best.quotas}, {best.slots} slots, {best.hit_rate:.1%} hits"
    Quotas(found.layers, found.experts, best.slots_by_layer, why, found.popular).write(path)
