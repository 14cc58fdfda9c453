"""What `mixq bench` prints: the table for people, Markdown, CSV and JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mixq.cli import output
from mixq.cli.tables import speed_table
from mixq.config import format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from mixq.measure.speed.measure import Bench

FORMATS = ("table", "markdown", "csv", "jsonl")


def print_bench(bench: Bench, format: str, *, json: bool) -> None:
    """Print the results in one of `FORMATS`, or as the document of `--json`."""
    from mixq.measure.speed import table

    if json:
        output.print_json(table.document(bench))
    elif format == "markdown":
        typer.echo(table.markdown(bench), nl=False)
    elif format == "csv":
        typer.echo(table.comma_separated(bench), nl=False)
    elif format == "jsonl":
        typer.echo(table.json_lines(bench), nl=False)
    else:
        _print_table(bench)


def _print_table(bench: Bench) -> None:
    facts, run = bench.facts, bench.as_dict()
    console = output.console()
    weights = f"{facts.weights / 1e9:.2f} billion weights, {format_size(facts.nbytes)}"
    console.print(printable(facts.model), style="bold", soft_wrap=True)
    console.print(f"{weights} · {facts.backend} · {facts.threads} threads · KV cache {facts.kv}", soft_wrap=True)
    console.print()
    console.print(speed_table(bench.rows()))
    console.print()
    bandwidth, peak = run["bandwidth_bytes_per_second"], run["peak_memory_bytes"]
    limit = f"{format_size(bandwidth)}/s" if bandwidth else "not measured: it needs the native kernels"
    for row in bench.rows():
        if row.experts is not None and (line := row.experts.line()):
            console.print(f"{row.workload.name:<15} {line}", soft_wrap=True)
    console.print(f"read bandwidth  {limit}", soft_wrap=True)
    console.print(f"loaded in       {facts.load_seconds:.1f} s")
    if peak is not None:
        probe = f", {format_size(bench.bandwidth.nbytes)} of it to measure the bandwidth" if bench.bandwidth else ""
        console.print(f"peak memory     {format_size(peak)}{probe}")
