"""`mixq list`: the models of the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixq.cli import options, output
from mixq.cli.tables import model_lines, model_table
from mixq.errors import printable
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.formats.store import Entry

UNITS = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def list_models(json: options.Json = False) -> None:
    """List the models of the store, also unfinished and damaged ones.

    Only names and sizes of files are checked; mixq verify reads every byte.
    """
    from mixq.formats import store

    found = store.entries()
    if json:
        output.print_json({"store": str(paths.store()), "models": [entry.as_dict() for entry in found]})
        return
    if not found:
        output.note(f"The store, {printable(paths.store())}, is empty.")
        output.note("Make a model:       mixq pull mistralai/Mixtral-8x7B-Instruct-v0.1")
        output.note("Or try the demo:    mixq chat")
        return
    _print(found)
    for entry in found:
        if entry.state != "ready":
            output.warn(f"{printable(entry.name)} {_trouble(entry)}.")
            output.talk().print(f"Next: {printable(entry.next_step)}")


def _print(found: Sequence[Entry]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = output.console()
    if not console.is_terminal:  # one line per model, however long
        console = Console(highlight=False, markup=False, width=1000)
    table = model_table(found, ago)
    if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
        console.print(table)
        return
    for entry in found:
        name, origin, figures = model_lines(entry, ago)
        console.print(Text.assemble((name, "bold"), (f"  from {origin}" if origin else "", "dim")))
        console.print(f"  {figures}", style="" if entry.state == "ready" else "yellow")


def _trouble(entry: Entry) -> str:
    if entry.state == "damaged":
        return f"is damaged: {printable(entry.problem, 400)}"
    of = f" of {entry.shards}" if entry.shards else ""
    there = f"{entry.shards_done}{of} shards exist"
    return f"is being written: {there}" if entry.state == "running" else f"is not finished: {there}"


def ago(moment: float) -> str:
    """Return how long ago a moment was, in one unit."""
    seconds = time.time() - moment
    for length, unit in UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
