"""`mixq quantize`: a checkpoint becomes a model folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.cli.interrupt import Terminated, termination_interrupts

if TYPE_CHECKING:
    from mixq.quantize.events import Result
    from mixq.quantize.job import Job
    from mixq.quantize.job_plan import DryRun


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder (Hugging Face's or Mistral's form, GPTQ, AWQ, bitsandbytes), a GGUF file, a name in the "
            "model store, or a repository of the hub (owner/name), which is read without being kept.",
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="DST", help="The folder to make.  [default: SRC's name and the format, in the store]"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="nl4|w4|w8|nf4",
            help="nl4: smallest error. w4, w8: folders that transformers and vLLM open too. nf4: bitsandbytes' own.",
        ),
    ] = "nl4",
    group: Annotated[
        int | None,
        typer.Option("--group", metavar="N", help="Weights that share a scale.  [default: the format's own]"),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            "--mix",
            metavar="MIX",
            help="all-nl4, or pairs such as experts=nl4:32,o=w8,lm_head=bf16. Names: experts, attention, q, k, v, o, "
            "lm_head, embedding.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="TOML file of schemes by the Linears' names; goes over the mix."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT|default",
            help="Run the model over a text file, or the text that comes with mixq, and weigh each input channel by "
            "what it sees.",
        ),
    ] = None,
    calibrate_tokens: Annotated[
        int, typer.Option("--calibrate-tokens", metavar="N", help="How many tokens of the text to use.")
    ] = 16384,
    table: Annotated[
        str,
        typer.Option("--table", metavar="default|fit", help="nl4's 16 code values; fit: to the model's own weights."),
    ] = "default",
    lora: Annotated[
        Path | None,
        typer.Option("--lora", metavar="DIR", help="A PEFT adapter (safetensors) to merge into the weights first."),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Take over what SRC has in int4 or int8 groups as it is: Q4_0, Q8_0, GPTQ, ..."),
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a repository.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin, .pt and .pth files, by torch's restricted unpickler.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Store NaN and infinite weights as 0 instead of refusing them.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Draw errors and sizes into a .html or .png file."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made, and write nothing.")] = False,
    json: options.Json = False,
) -> None:
    """Quantize a checkpoint into a model folder.

    One tensor is in memory at a time. An interrupted job goes on where it was when the same command is run again.
    """
    from mixq import paths
    from mixq.config import format_size
    from mixq.errors import printable
    from mixq.quantize.calibration_run import CalibrationText
    from mixq.quantize.job import Job
    from mixq.quantize.sources.open import find_source

    if report is not None:
        from mixq.quantize.figure import check_figure

        check_figure(report)
    checkpoint = find_source(source, allow_pickle=allow_pickle, revision=revision)
    if lora is not None:
        from mixq.quantize.sources.lora import LoraSource

        checkpoint = LoraSource(checkpoint, lora)
    if checkpoint.path is None:
        size = format_size(checkpoint.nbytes)
        output.note(f"{printable(checkpoint.name)}: {size} are read from the hub as they are needed; nothing is kept.")
    schemes = None
    if recipe is not None:
        from mixq.quantize.recipe import read_recipe

        schemes = read_recipe(recipe)
    job = Job(
        checkpoint,
        target or paths.store() / f"{checkpoint.name.rsplit('/', 1)[-1]}-{format}",
        format=format,
        group=group,
        mix=mix,
        table=table,
        recipe=schemes,
        keep=keep,
        calibrate=None if calibrate is None else CalibrationText.read(calibrate, calibrate_tokens),
        allow_nonfinite=allow_nonfinite,
    )
    if dry_run:
        plan = job.dry_run()
        if json:
            output.print_json(plan.as_dict())
        else:
            _print_plan(plan, job.target)
        return
    try:
        with termination_interrupts():
            result = run_job(job)
    except KeyboardInterrupt as interrupt:
        output.warn("interrupted; run the same command again and it goes on from here.")
        if isinstance(interrupt, Terminated):
            raise typer.Exit(Terminated.exit_code) from None
        raise
    if report is not None:
        _draw(report, job, result)
    if json:
        output.print_json(result.as_dict())
    else:
        _print_result(result)


def _draw(path: Path, job: Job, result: Result) -> None:
    """Draw the report of a finished job."""
    from mixq.config import format_size
    from mixq.errors import printable
    from mixq.formats.manifest import Manifest
    from mixq.quantize.figure import draw

    manifest, origin = Manifest.read(result.path), job.plan.origin
    facts = [
        ("source", f"{origin['name']}, {origin['dtype']}, {format_size(float(str(origin['nbytes'])))}"),
        ("fingerprint", str(origin["fingerprint"])[:16]),
        ("format", result.format),
        ("mix", ", ".join(f"{part} {scheme}" for part, scheme in job.plan.mix.as_dict().items())),
    ]
    if result.weights_done:
        facts.append(("time", f"{result.seconds:.0f} s, {result.weights_per_second / 1e6:.0f} M weights/s"))
    draw(
        path,
        title=printable(result.path.name),
        errors=manifest.errors,
        sizes=result.sizes,
        facts=facts,
        worst=result.errors.worst,
    )
    output.note(f"Report: {printable(path)}")


def run_job(job: Job) -> Result:
    """Do a job, showing how far it is and what it has to say; raises what `Job.run` raises."""
    from mixq.cli.progress import weight_progress
    from mixq.quantize.events import Finished, Notice, ShardDone, Started, TensorDone

    with weight_progress("quantizing") as update:
        for event in job.run():
            if isinstance(event, Started | TensorDone):
                update(event.weights_done, event.weights)
            elif isinstance(event, Notice):
                output.warn(event.text)
            elif isinstance(event, Finished):
                return event.result
            else:
                assert isinstance(event, ShardDone)
    raise AssertionError("a job ends with Finished")


def _print_plan(plan: DryRun, target: Path) -> None:
    from rich.console import Console

    from mixq.cli.tables import size_table
    from mixq.config import format_size
    from mixq.errors import printable

    console = Console(highlight=False, markup=False)
    console.print(f"{printable(plan.source)} as {plan.format}, nothing written", style="bold", soft_wrap=True)
    console.print(size_table(plan.sizes))
    console.print()
    source_bytes = plan.sizes.source_bytes
    if source_bytes:
        console.print(
            f"source:          {format_size(source_bytes)}, {source_bytes / plan.sizes.nbytes:.1f} times as large"
        )
    console.print(f"a token reads:   {format_size(plan.sizes.token_bytes)}")
    console.print(f"disk needed:     {plan.disk_needed:,} bytes, {plan.disk_free:,} free")
    console.print(f"memory needed:   {format_size(plan.memory_needed)}")
    console.print(f"target:          {printable(target)}", soft_wrap=True)
    for notice in plan.notices:
        output.warn(notice)
    if plan.disk_needed > plan.disk_free:
        output.warn(f"{plan.disk_needed - plan.disk_free:,} bytes of disk are missing; the job would be refused.")


def _print_result(result: Result) -> None:
    from rich.console import Console

    from mixq.cli.tables import error_rows, mean_errors, size_table
    from mixq.errors import printable

    console = Console(highlight=False, markup=False)
    console.print(size_table(result.sizes))
    console.print()
    console.print(mean_errors(result.errors))
    console.print()
    console.print(error_rows(result.errors.worst))
    console.print()
    for row in result.errors.badly_served:
        ratio = f"{row.ratio:.1f}" if row.ratio is not None else "?"
        output.warn(f"{printable(row.linear)} has outliers: {row.scheme} loses {ratio} times what normal weights lose.")
    if result.already_done:
        output.note("The folder was finished before; nothing was written.")
    if result.weights_done:
        rate = f"{result.weights_per_second / 1e6:.0f} M weights/s"
        output.note(f"{result.weights_done / 1e9:.2f} billion weights in {_duration(result.seconds)}: {rate}.")
    console.print(f"Done: {printable(result.path)}", style="bold", soft_wrap=True)
    output.note(f"Try it: mixq chat {shlex.quote(printable(result.path))}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
