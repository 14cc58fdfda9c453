"""`mixq bench`: how fast a model runs on this machine, and how far that is from the machine's limit."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.cli.bench_report import FORMATS, print_bench
from mixq.cli.flag_groups import takes_groups
from mixq.cli.progress import byte_progress, run_progress
from mixq.config import format_size, parse_size
from mixq.errors import UsageError, printable

if TYPE_CHECKING:
    from mixq.config import RuntimeOptions
    from mixq.engine.model import Model
    from mixq.measure.speed.measure import Bench
    from mixq.measure.speed.workload import Workload

LONGEST = 10**7
MOST_REPEATS = 1000


@takes_groups(without=("template",))
def bench(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    *,
    synthetic: Annotated[
        str | None,
        options.option(
            "--synthetic",
            "Random weights with the sizes of mixtral-8x7b, mixtral-8x22b, mistral-7b or llama-2-70b.",
            "PRESET",
        ),
    ] = None,
    layers: Annotated[
        int | None, options.option("--layers", "Layers of the synthetic model.  [default: all]", "N")
    ] = None,
    mix: Annotated[
        str | None,
        options.option(
            "--mix",
            "Schemes of the synthetic model: all-nl4, w4, w8, nf4, bf16, or pairs as in mixq quantize --mix.",
            "MIX",
        ),
    ] = None,
    write: Annotated[
        Path | None, options.option("--write", "Write the synthetic model to a new folder, without measuring.", "DIR")
    ] = None,
    prompt: Annotated[
        str, options.option("--prompt", "Prompt lengths in tokens; 0 for none.", "N,...", short="-p")
    ] = "512",
    gen: Annotated[str, options.option("--gen", "Tokens to generate; 0 for none.", "N,...", short="-n")] = "128",
    depth: Annotated[
        str, options.option("--depth", "Tokens already in the KV cache when a test starts.", "N,...", short="-d")
    ] = "0",
    repeats: Annotated[int, options.option("--repeats", "Runs of each test.", "N", short="-r")] = 5,
    format: Annotated[
        str, options.option("--format", "markdown, csv and jsonl use llama-bench's names.", "|".join(FORMATS))
    ] = "table",
    save: Annotated[
        Path | None, options.option("--save", "Append the results to FILE, one line of JSON per test.", "FILE")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        options.option(
            "--compare",
            "Compare two such files, without measuring. The same file twice compares its last two runs.",
            "OLD NEW",
        ),
    ] = None,
    fail_below: Annotated[
        float | None,
        options.option(
            "--fail-below", "With --compare: exit with code 1 if a speed is below X times the old one.", "X"
        ),
    ] = None,
    json: options.Json = False,
    runtime: options.Runtime,
    routing: Annotated[
        str,
        options.option(
            "--routing",
            "Which experts run. model: the routers' choice; uniform: random; sticky:P: each expert of the previous "
            'token again with probability P; mixtral: random, some more often; "trace FILE": as in a recording.',
            "model|uniform|sticky:P|mixtral|trace FILE",
        ),
    ] = "model",
    sim_bandwidth: Annotated[
        str | None,
        options.option("--sim-bandwidth", "Bytes per second that --device sim copies, such as 12GB.", "SIZE"),
    ] = None,
    context: Annotated[
        int | None,
        options.flag("--context", "Tokens that the KV cache holds.  [default: what the tests need]", "N"),
    ] = None,
    seed: Annotated[int, options.flag("--seed", "Random seed for token ids and weights.", "N")] = 0,
) -> None:
    """Measure prompt and decode speed, and the memory bandwidth.

    pp512 computes a prompt of 512 tokens; tg128 generates 128 tokens; @ d4096 means that 4096 tokens are in the KV
    cache already. Decoding is limited by the memory bandwidth: "of limit" is the share of the bandwidth that was
    used. The bandwidth is measured in the same run with the same threads. Only the network is timed; token ids are
    random. Results include commit, machine, kernels and the load by other programs. Example: mixq bench --save
    new.jsonl && mixq bench --compare old.jsonl new.jsonl"""
    if compare is not None:
        from mixq.cli.bench_compare import compare_files

        compare_files(*compare, fail_below, json=json)
        return
    if fail_below is not None:
        raise UsageError("--fail-below needs --compare.", hint="Add --compare OLD NEW.")
    options.one_of("--format", format, FORMATS)
    options.whole_number("--repeats", repeats, 1, MOST_REPEATS)
    if synthetic is None and (layers is not None or mix is not None or write is not None):
        raise UsageError(
            "--layers, --mix and --write apply to synthetic models only.",
            hint="Add --synthetic PRESET, such as mixtral-8x7b.",
        )
    source = ctx.get_parameter_source("model")
    if synthetic is not None and model is not None and source is not None and source.name == "COMMANDLINE":
        raise UsageError(
            f"MODEL {printable(repr(model))} and --synthetic are both given.", hint="Use only one of them."
        )
    if synthetic is not None and write is not None:
        _refuse_tests(ctx)
        _write(write, synthetic, layers, mix, seed, json=json)
        return

    _check_routing(routing)
    from mixq.cli.loading import load_model
    from mixq.measure.speed.measure import Bench
    from mixq.measure.speed.workload import workloads

    tests = workloads(_lengths(prompt, "--prompt"), _lengths(gen, "--gen"), _lengths(depth, "--depth"))
    runtime = replace(
        runtime,
        context=context or max(test.positions for test in tests),
        sim_bandwidth=None if sim_bandwidth is None else parse_size(sim_bandwidth),
    )
    begun = time.perf_counter()
    loaded = load_model(model, runtime) if synthetic is None else _make_up(synthetic, tests, runtime, layers, mix, seed)
    _route(loaded, routing, seed)
    seconds = time.perf_counter() - begun
    name = "the demo model" if synthetic is None and model is None else loaded.folder.path.name
    bench = Bench(loaded, tests, repeats=repeats, seed=seed, name=name, load_seconds=seconds, routing=routing)
    try:
        _run(bench, tests, repeats)
    except KeyboardInterrupt:
        output.warn("interrupted; results so far:")
        print_bench(bench, format, json=json)
        raise
    print_bench(bench, format, json=json)
    if save is not None:
        from mixq.measure.speed import record, table

        record.append(save, table.records(bench))
        output.note(f"Added to {printable(save)}.")


def _check_routing(text: str) -> None:
    """Refuse unknown routing before a model is created or loaded."""
    from mixq.experts.routing import parse_routing
    from mixq.plan.recording import read_routing

    if text.startswith("trace "):
        read_routing(Path(text.removeprefix("trace ").strip()))
    elif text != "model":
        parse_routing(text, layers=1, experts=2, active=1)


def _route(model: Model, text: str, seed: int) -> None:
    """Replace the routers' choices by synthetic routing."""
    if text == "model":
        return
    config = model.config
    if not config.is_moe:
        raise UsageError("--routing needs a model with experts; this model has none.", hint="Omit --routing.")
    from mixq.experts.routing import parse_routing
    from mixq.plan.recording import read_routing

    routing = parse_routing(
        text,
        layers=config.num_hidden_layers,
        experts=config.num_local_experts,
        active=config.num_experts_per_tok,
        seed=seed,
        read_trace=read_routing,
    )
    model.network.override_routing(routing)


def _lengths(text: str, flag: str) -> list[int]:
    """Return the numbers of a flag such as 128,512."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdigit() and len(item) <= 8 and int(item) <= LONGEST for item in items):
        raise UsageError(
            f"{flag} is {printable(repr(text))}; it must be whole numbers up to {LONGEST}, such as 128,512."
        )
    return [int(item) for item in items]


def _make_up(
    preset: str, tests: list[Workload], runtime: RuntimeOptions, layers: int | None, mix: str | None, seed: int
) -> Model:
    from mixq.engine.model import Model
    from mixq.measure.speed.synthetic import DEFAULT_MIX, SyntheticWeights
    from mixq.measure.speed.workload import check_positions
    from mixq.models.presets import PRESETS

    if preset in PRESETS:  # before anything is created
        check_positions(tests, runtime.context, PRESETS[preset]["max_position_embeddings"])
    output.note(f"Generating random weights of {printable(preset)}.")
    made = Model(SyntheticWeights.make(preset, layers=layers, mix=mix or DEFAULT_MIX, seed=seed), runtime)
    for line in made.notes:
        output.warn(line)
    return made


def _refuse_tests(ctx: typer.Context) -> None:
    """Refuse measurement flags together with --write, which does not measure."""
    for name in ("prompt", "gen", "depth", "repeats", "format", "save", "device", "context", "threads", "kv"):
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name} has no effect with --write: nothing is measured.", hint="Use only one of them.")


def _write(folder: Path, preset: str, layers: int | None, mix: str | None, seed: int, *, json: bool) -> None:
    from mixq.measure.speed.synthetic import DEFAULT_MIX
    from mixq.measure.speed.write_folder import FolderJob

    job = FolderJob(folder, preset, layers=layers, mix=mix or DEFAULT_MIX, seed=seed)
    with byte_progress("writing") as update:
        job.run(on_progress=update)
    if json:
        output.print_json({"path": str(folder), "bytes": job.nbytes})
    else:
        typer.echo(f"{printable(folder)}: {format_size(job.nbytes)}")


def _run(bench: Bench, tests: list[Workload], repeats: int) -> None:
    total = len(tests) * repeats
    with run_progress("measuring") as update:
        for done, _ in enumerate(bench.samples(), 1):
            update(done, total)
