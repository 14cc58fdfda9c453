"""`mixq list`: the models in the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mixq.cli import options, output
from mixq.cli.tables import table
from mixq.config import format_size
from mixq.errors import printable
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.formats.store import Entry

UNITS = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def list_models(json: options.Json = False) -> None:
    """List the models in the store, including unfinished and damaged ones.

    Checks only names and sizes of files; mixq verify reads every byte.
    """
    from mixq.formats import store

    found = store.entries()
    if json:
        output.print_json({"store": str(paths.store()), "models": [entry.as_dict() for entry in found]})
        return
    if not found:
        output.note(f"The store, {printable(paths.store())}, is empty.")
        output.note("Quantize a model:   mixq pull mistralai/Mixtral-8x7B-Instruct-v0.1")
        output.note("Try the demo model: mixq chat")
        return
    _print([(entry, _figures(entry)) for entry in found])
    for entry in found:
        if entry.state != "ready":
            output.warn(f"{printable(entry.name)} {_trouble(entry)}.")
            output.talk().print(f"Next: {printable(entry.next_step)}")


def _figures(entry: Entry) -> dict[str, str]:
    """Return size, scheme, layers, experts and context, "" where an entry is not ready."""
    if entry.state != "ready":
        return {"size": format_size(entry.nbytes), "scheme": entry.state, "layers": "", "experts": "", "context": ""}
    facts = entry.as_dict()
    return {
        "size": format_size(entry.nbytes),
        "scheme": entry.scheme,
        "layers": printable(facts["layers"], 6),
        "experts": printable(f"{facts['experts_per_token']} of {facts['experts']}", 16) if facts["experts"] else "",
        "context": printable(facts["max_context"], 8),
    }


def _print(found: list[tuple[Entry, dict[str, str]]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = output.console()
    if not console.is_terminal:  # one line per model, however long
        console = Console(highlight=False, markup=False, width=1000)
    made = table("name", *found[0][1], left=("name",))
    made.add_column("from", no_wrap=True)
    made.add_column("changed", no_wrap=True)
    for entry, figures in found:
        style = "" if entry.state == "ready" else "yellow"
        made.add_row(printable(entry.name), *figures.values(), _origin(entry), _changed(entry), style=style)
    if console.measure(made, options=console.options.update(max_width=1000)).maximum <= console.width:
        console.print(made)
        return
    units = {"layers": "{} layers", "experts": "{} experts", "context": "context {}"}
    for entry, figures in found:
        origin = f"  from {_origin(entry)}" if _origin(entry) else ""
        console.print(Text.assemble((printable(entry.name), "bold"), (origin, "dim")))
        parts = [units.get(name, "{}").format(value) for name, value in figures.items() if value]
        line = " · ".join(filter(None, [*parts, _changed(entry)]))
        console.print(f"  {line}", style="" if entry.state == "ready" else "yellow")


def _origin(entry: Entry) -> str:
    return printable(entry.source.get("name", "") if entry.link is None else f"a symlink to {entry.link}")


def _changed(entry: Entry) -> str:
    return ago(entry.modified) if entry.modified else ""


def _trouble(entry: Entry) -> str:
    if entry.state == "damaged":
        return f"is damaged: {printable(entry.problem, 400)}"
    of = f" of {entry.shards}" if entry.shards else ""
    there = f"{entry.shards_done}{of} shards exist"
    return f"is being written: {there}" if entry.state == "running" else f"is not finished: {there}"


def ago(moment: float) -> str:
    """Return how long ago a time was, in one unit."""
    seconds = time.time() - moment
    for length, unit in UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
