"""`mixq bench --compare`: two files of results, test by test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mixq.cli import output
from mixq.cli.tables import table
from mixq.errors import MixqError, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mixq.measure.speed.compare import Comparison


def compare_files(old: Path, new: Path, fail_below: float | None, *, json: bool) -> None:
    """Print the comparison; exit with 1 where a speed is below `fail_below` times the old one.

    Raises:
        UsageError: `fail_below` is out of bounds, or the files have no test in common.
    """
    from mixq.measure.speed.compare import compare, read
    from mixq.system.load import marks

    if fail_below is not None and not 0 < fail_below <= 1:
        raise UsageError(f"--fail-below is {fail_below}; it must be above 0 and at most 1, such as 0.95.")
    before, after = read(old), read(new)
    found = compare(before, after, same_file=old.samefile(new))
    fallen = [row for row in found if fail_below is not None and _upper_end(row) < fail_below]
    if json:
        output.print_json({"tests": [row.as_dict() for row in found], "fallen": [row.old.test for row in fallen]})
    else:
        _print(found)
    loads = [
        (f"{row.old.test}, {when},", side.load) for row in found for when, side in (("old", row.old), ("new", row.new))
    ]
    for line in marks(loads):
        output.warn(line)
    for line in dict.fromkeys(line for row in found for line in row.differences):
        output.warn(f"the runs differ in more than the code: {printable(line, 200)}")
    if fallen:
        for row in fallen:
            output.warn(f"{row.old.test} runs at {row.ratio:.2f} times the old speed.")
        raise typer.Exit(MixqError.exit_code)


def _upper_end(row: Comparison) -> float:
    """Return the upper end of a ratio's interval; the ratio itself where one run gives no interval."""
    return row.ratio if row.high is None else row.high


def _print(found: Sequence[Comparison]) -> None:
    made = table("model", "test", "old t/s", "new t/s", "ratio", "95 %", "", left=("model", "test", ""))
    for row in found:
        between = "" if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
        made.add_row(
            printable(row.old.model, 40),
            row.old.test,
            f"{row.old.mean:.2f}",
            f"{row.new.mean:.2f}",
            f"{row.ratio:.3f}",
            between,
            row.verdict,
        )
    output.console().print(made)
