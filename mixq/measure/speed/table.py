"""Bench results as Markdown (like llama-bench's tables), CSV and JSON lines.

Contract: columns that llama-bench has use its names and units (t/s as mean ± deviation, sizes in GiB, weights in
billions; avg_ts, stddev_ts, n_prompt, n_gen, n_depth and so on in CSV and JSON); mixq's columns follow them.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from mixq.measure.speed.measure import Bench, Row

RUN = ("model", "size", "params", "backend", "threads")
FIGURES = ("t/s", "GB/token", "GB/s", "of limit", "GFLOPS", "µs/layer")


def document(bench: Bench) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {**bench.as_dict(), "tests": [_figures(row) for row in bench.rows()]}


def records(bench: Bench) -> list[dict[str, Any]]:
    """Return one flat record for each test, with the facts of the run in each."""
    run = bench.as_dict()
    facts = {
        "model_filename": run.pop("model"),
        "model_size": run.pop("nbytes"),
        "model_n_params": run.pop("weights"),
        "backends": run.pop("backend"),
        "n_threads": run.pop("threads"),
        "type_k": run["kv"],
        "type_v": run.pop("kv"),
    }
    return [{**facts, **_figures(row), **run} for row in bench.rows()]


def json_lines(bench: Bench) -> str:
    """Return one JSON object per line."""
    return "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records(bench))


def comma_separated(bench: Bench) -> str:
    """Return CSV with a header; the samples are one field, separated by spaces."""
    rows = records(bench)
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        row |= {name: json.dumps(row[name]) for name in row if isinstance(row[name], dict)}
        writer.writerow({**row, "samples_ts": " ".join(f"{speed:.6g}" for speed in row["samples_ts"])})
    return text.getvalue()


def markdown(bench: Bench) -> str:
    """Return a table with llama-bench's columns and mixq's."""
    facts = bench.facts
    model = (
        facts.model.replace("|", "\\|"),
        f"{facts.nbytes / 2**30:.2f} GiB",
        f"{facts.weights / 1e9:.2f} B",
        facts.backend,
        str(facts.threads),
    )
    lines = [(*RUN, "test", *FIGURES), *((*model, row.workload.name, *figures(row)) for row in bench.rows())]
    columns = []
    for name, *cells in zip(*lines, strict=True):
        width = max(map(len, (name, *cells)))
        if name in ("model", "backend", "test"):
            columns.append([name.ljust(width), "-" * width, *(cell.ljust(width) for cell in cells)])
        else:
            columns.append([name.rjust(width), "-" * (width - 1) + ":", *(cell.rjust(width) for cell in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns, strict=True))


def figures(row: Row) -> tuple[str, ...]:
    """Return a test's results as text, from t/s on; those that do not apply are empty."""
    return (
        f"{row.tokens_per_second:.2f} ± {row.deviation:.2f}",
        _optional(row.bytes_per_token, 1e-9, ".3g"),
        _optional(row.bytes_per_second, 1e-9, ".1f"),
        _optional(row.share_of_limit, 100, ".1f", " %"),
        _optional(row.gflops, 1, ".1f"),
        _optional(row.overhead_us, 1, ".0f"),
    )


def _optional(value: float | None, factor: float, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value * factor:{form}}{unit}"


def _figures(row: Row) -> dict[str, Any]:
    return {
        "test": row.workload.name,
        "n_prompt": row.workload.prompt,
        "n_gen": row.workload.gen,
        "n_depth": row.workload.depth,
        "avg_ts": row.tokens_per_second,
        "stddev_ts": row.deviation,
        "samples_ts": list(row.samples),
        "bytes_per_token": row.bytes_per_token,
        "bytes_per_second": row.bytes_per_second,
        "share_of_limit": row.share_of_limit,
        "gflops": row.gflops,
        "overhead_us_per_layer": row.overhead_us,
        "operations_per_token": row.operations_per_token,
        "read_per_token": row.read_per_token,
        "load": row.load,
        **({"experts": row.experts.as_dict()} if row.experts is not None else {}),
    }
