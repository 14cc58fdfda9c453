"""`mixq plot`: pictures of recordings, benches, replays and quantized folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.errors import UsageError, printable

if TYPE_CHECKING:
    from mixq.measure.plots.figure import Figure

PICTURES = (".png", ".svg")


def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE|DIR...",
            help="Recordings (.mqt), lines of mixq bench --save, mixq replay --json, quantized folders.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE|DIR", help="A .png or .svg of all, or a folder with one of each."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="One page with all pictures and their numbers.")
    ] = None,
    format: Annotated[str, typer.Option("--format", metavar="png|svg", help="Of the pictures in a folder.")] = "png",
    json: options.Json = False,
) -> None:
    """Draw who answers, what a cache would hit, what was foreseen, how fast, what quantizing cost.

    Without -o or --html the pictures are drawn in the terminal; files take the extra `plots` (matplotlib). Example:
    mixq plot run.mqt --html experts.html
    """
    if format not in ("png", "svg"):
        raise UsageError(f"--format is {printable(repr(format))}; it must be png or svg.")
    from mixq.measure.plots.sources import figures_of

    figures = [figure for source in sources for figure in figures_of(source)]
    if json:
        output.print_json({"figures": [figure.as_dict() for figure in figures]})
    if out is not None:
        _write(figures, out, format)
    if html is not None:
        from mixq.formats.atomic import atomic_write_bytes
        from mixq.measure.plots.page import page

        title = ", ".join(printable(source.name, 60) for source in sources)
        atomic_write_bytes(html, page(f"mixq: {title}", figures).encode())
        output.note(f"{printable(html)}: {len(figures)} pictures.")
    if out is None and html is None and not json:
        from rich.console import Console

        from mixq.cli.plot_terminal import show

        console = Console(highlight=False, markup=False)
        for figure in figures:
            show(figure, console)


def _write(figures: list[Figure], out: Path, format: str) -> None:
    """Write one picture of all figures, or a folder with a picture of each."""
    from mixq.formats.atomic import atomic_write_bytes
    from mixq.measure.plots.draw import picture, sheet

    if out.suffix.lower() in PICTURES:
        if len(figures) == 1:
            atomic_write_bytes(out, picture(figures[0], out.suffix.lower()[1:]))
        elif out.suffix.lower() == ".svg":
            raise UsageError(f"An .svg holds one picture; there are {len(figures)}.", hint="Give a .png, or a folder.")
        else:
            atomic_write_bytes(out, sheet(figures))
        output.note(f"{printable(out)}: {len(figures)} {'picture' if len(figures) == 1 else 'pictures'}.")
        return
    if out.suffix and not out.is_dir():
        raise UsageError(f"{printable(out)} is neither .png nor .svg nor a folder.")
    made: dict[str, int] = {}
    for figure in figures:
        made[figure.name] = made.get(figure.name, 0) + 1
        number = f"-{made[figure.name]}" if made[figure.name] > 1 else ""
        path = out / f"{figure.name}{number}.{format}"
        out.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, picture(figure, format))
        output.note(printable(path))
