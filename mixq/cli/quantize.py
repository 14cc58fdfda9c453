"""`mixq quantize`: turn a checkpoint into a model folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import job_options, options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.interrupt import Terminated, termination_interrupts
from mixq.cli.progress import weight_progress
from mixq.cli.tables import size_table, table
from mixq.config import format_duration, format_size
from mixq.errors import printable
from mixq.system import paths

if TYPE_CHECKING:
    from rich.console import Console

    from mixq.quantize.events import Result
    from mixq.quantize.job import Job
    from mixq.quantize.job_plan import DryRun


@takes_groups()
def quantize(
    source: job_options.SourceArgument,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="DST", help="The folder to write.  [default: SRC's name and the format, in the store]"),
    ] = None,
    *,
    flags: job_options.Flags,
    lora: Annotated[
        Path | None, options.option("--lora", "A PEFT adapter (safetensors) to merge into the weights first.", "DIR")
    ] = None,
    revision: job_options.Revision = None,
    allow_pickle: job_options.AllowPickle = False,
    report: Annotated[
        Path | None, options.option("--report", "Write plots of errors and sizes to a .html or .png file.", "FILE")
    ] = None,
    dry_run: job_options.DryRunFlag = False,
    json: options.Json = False,
) -> None:
    """Quantize a checkpoint into a model folder.

    One tensor is in memory at a time. To resume an interrupted job, run the same command again.
    """
    from mixq.quantize.sources.open import find_source

    if report is not None:
        from mixq.cli.plot import check_report

        check_report(report)
    checkpoint = find_source(source, allow_pickle=allow_pickle, revision=revision)
    if lora is not None:
        from mixq.quantize.sources.lora import LoraSource

        checkpoint = LoraSource(checkpoint, lora)
    job_options.say_what_is_fetched(checkpoint)
    job = flags.job(checkpoint, target or paths.store() / f"{checkpoint.name.rsplit('/', 1)[-1]}-{flags.format}")
    if dry_run:
        plan = job.dry_run()
        if json:
            output.print_json(plan.as_dict())
        else:
            title = f"{printable(plan.source)} as {plan.format}, nothing written"
            print_plan(plan, job.target, title)
        return
    result = run_to_the_end(job)
    if report is not None:
        from mixq.cli.plot import draw_report

        draw_report(report, result.path, _time_taken(result))
    if json:
        output.print_json(result.as_dict())
    else:
        _print_result(result)


def _time_taken(result: Result) -> list[tuple[str, str]]:
    rate = f"{result.seconds:.0f} s, {result.weights_per_second / 1e6:.0f} M weights/s"
    return [("time", rate)] if result.weights_done else []


def run_job(job: Job) -> Result:
    """Run a job, showing its progress and notices; raises what `Job.run` raises."""
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


def run_to_the_end(job: Job) -> Result:
    """Run a job as `run_job` does; if a signal ends it, print how to resume."""
    try:
        with termination_interrupts():
            return run_job(job)
    except KeyboardInterrupt as interrupt:
        output.warn("interrupted; run the same command again to resume.")
        if isinstance(interrupt, Terminated):
            raise typer.Exit(Terminated.exit_code) from None
        raise


def print_plan(plan: DryRun, target: Path, title: str, console: Console | None = None) -> None:
    """Print what a job writes and needs, to standard output or another console."""
    console = console or output.console()
    console.print(title, style="bold", soft_wrap=True)
    console.print(size_table(plan.sizes), soft_wrap=False)
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
        output.warn(
            f"{plan.disk_needed - plan.disk_free:,} more bytes of disk space are needed, so the job would not start."
        )


def _print_result(result: Result) -> None:
    console = output.console()
    console.print(size_table(result.sizes))
    console.print()
    means = table("scheme", "mean relative squared error", left=("scheme",))
    for scheme, error in result.errors.mean.items():
        means.add_row(scheme, f"{error:.3g}")
    console.print(means)
    console.print()
    worst = table("worst", "scheme", "error", "x normal", left=("worst", "scheme"))
    for row in result.errors.worst:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        worst.add_row(printable(row.linear), row.scheme, f"{row.relative_squared_error:.3g}", ratio)
    console.print(worst)
    console.print()
    say_how_it_went(result)
    console.print(f"Done: {printable(result.path)}", style="bold", soft_wrap=True)
    output.note(f"Try it: mixq chat {shlex.quote(printable(result.path))}")


def say_how_it_went(result: Result) -> None:
    """Print outliers, time and speed of a finished job."""
    for row in result.errors.badly_served:
        ratio = f"{row.ratio:.1f}" if row.ratio is not None else "?"
        output.warn(
            f"{printable(row.linear)} has outliers: its error in {row.scheme} is {ratio} times that of Gaussian "
            "weights."
        )
    if result.already_done:
        output.note("The folder is already complete; nothing was written.")
    if result.weights_done:
        rate = f"{result.weights_per_second / 1e6:.0f} M weights/s"
        output.note(f"{result.weights_done / 1e9:.2f} billion weights in {format_duration(result.seconds)}: {rate}.")
