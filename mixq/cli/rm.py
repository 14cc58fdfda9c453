"""`mixq rm`: remove models from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.cli.input import confirm
from mixq.config import format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from mixq.formats.store import Entry


def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Names of models in the store.", autocompletion=options.complete_model),
    ],
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Remove models from the store, after asking for confirmation.

    Removes only folders written by mixq quantize or mixq pull; for a symlink, only the symlink.
    """
    from mixq.formats import store

    chosen = [store.find(name) for name in dict.fromkeys(names)]
    for entry in chosen:
        store.check_removable(entry)
    for entry in chosen:
        output.note(_described(entry))
    if not yes:
        total = format_size(sum(entry.nbytes for entry in chosen if entry.link is None))
        what = f"{len(chosen)} models" if len(chosen) > 1 else printable(chosen[0].name)
        if not confirm(f"Remove {what}, {total}?", default=False):
            output.note("Nothing was removed.")
            raise typer.Exit(1)
    for entry in chosen:
        store.remove(entry)
        if not json:
            typer.echo(f"removed {printable(entry.name)}")
    if json:
        output.print_json({"removed": [{"name": entry.name, "bytes": entry.nbytes} for entry in chosen]})


def _described(entry: Entry) -> str:
    from mixq.formats import store

    if entry.link is not None:
        return f"{printable(entry.name)}: a symlink to {printable(entry.link)}, whose target is kept"
    state = "" if entry.state == "ready" else f", {entry.state}"
    line = f"{printable(entry.name)}: {entry.files} files, {format_size(entry.nbytes)}{state}"
    others = store.others(entry)
    if others:
        named = ", ".join(printable(name) for name in others[:3]) + (", ..." if len(others) > 3 else "")
        line += f", of which mixq did not write {len(others)}: {named}"
    return line
