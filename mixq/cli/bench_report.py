"""What `mixq bench` prints: a table, and Markdown, CSV and JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mixq.cli import output
from mixq.cli.tables import table
from mixq.config import format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mixq.measure.speed.measure import Bench

FORMATS = ("table", "markdown", "csv", "jsonl")


def print_bench(bench: Bench, format: str, *, json: bool) -> None:
    """Print the results in one of `FORMATS`, or as the document of `--json`."""
    from mixq.measure.speed.table import comma_separated, document, json_lines, markdown
    from mixq.system.load import marks

    disturbed = marks((row.workload.name, row.load) for row in bench.rows())
    if json:
        output.print_json(document(bench))
    elif format == "table":
        _print_table(bench, disturbed)
    else:
        written = {"markdown": markdown, "csv": comma_separated, "jsonl": json_lines}[format]
        typer.echo(written(bench), nl=False)
    if format != "table" or json:
        for line in disturbed:
            output.warn(line)


def _print_table(bench: Bench, disturbed: Sequence[str]) -> None:
    from mixq.measure.speed.table import FIGURES, figures

    facts, run = bench.facts, bench.as_dict()
    console = output.console()
    weights = f"{facts.weights / 1e9:.2f} billion weights, {format_size(facts.nbytes)}"
    console.print(printable(facts.model), style="bold", soft_wrap=True)
    console.print(f"{weights} · {facts.backend} · {facts.threads} threads · KV cache {facts.kv}", soft_wrap=True)
    console.print()
    speeds = table("test", *FIGURES, left=("test",))
    for row in bench.rows():
        speeds.add_row(row.workload.name, *figures(row))
    console.print(speeds)
    for line in disturbed:
        console.print(f"! {line}", style="yellow", soft_wrap=True)
    console.print()
    bandwidth, peak = run["bandwidth_bytes_per_second"], run["peak_memory_bytes"]
    limit = f"{format_size(bandwidth)}/s" if bandwidth else "not measured: it needs the native kernels"
    for row in bench.rows():
        if row.experts is not None and (line := row.experts.line()):
            console.print(f"{row.workload.name:<15} {line}", soft_wrap=True)
    console.print(f"read bandwidth  {limit}", soft_wrap=True)
    console.print(f"weights         {run['plan']['weights']}", soft_wrap=True)
    console.print(f"loaded in       {facts.load_seconds:.1f} s")
    if peak is not None:
        probe = f", {format_size(bench.bandwidth.nbytes)} of that to measure the bandwidth" if bench.bandwidth else ""
        console.print(f"peak memory     {format_size(peak)}{probe}")
