"""`mixq quantize`: a checkpoint becomes a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output

if TYPE_CHECKING:
    from mixq.quantize.events import Result
    from mixq.quantize.job import DryRun, Job


def quantize(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A Hugging Face folder, or a name in the model store; not quantized yet."),
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made, and write nothing.")] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Store NaN and infinite weights as 0 instead of refusing them.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Quantize a checkpoint into a model folder.

    One tensor is in memory at a time. An interrupted job goes on where it was when the same command is run again.
    """
    from mixq import paths
    from mixq.quantize.job import Job

    folder = paths.resolve_model(source)
    job = Job(
        folder,
        target or paths.store() / f"{folder.resolve().name}-{format}",
        format=format,
        group=group,
        mix=mix,
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
        result = run_job(job)
    except KeyboardInterrupt:
        output.warn("interrupted; run the same command again and it goes on from here.")
        raise
    if json:
        output.print_json(result.as_dict())
    else:
        _print_result(result)


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
    console.print(f"Done: {printable(result.path)}", style="bold", soft_wrap=True)
    output.note(f"Try it: mixq chat {printable(result.path)}")
