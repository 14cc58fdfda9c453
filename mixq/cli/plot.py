"""`mixq plot`: pictures of recordings, benches, replays and quantized folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.errors import UsageError, printable
from mixq.formats.atomic import atomic_write_bytes

if TYPE_CHECKING:
    from mixq.measure.plots.figure import Figure

PICTURES = (".png", ".svg")


def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE|DIR...",
            help="Recordings (.mqt), files of mixq bench --save, saved output of mixq replay --json, quantized "
            "folders.",
        ),
    ],
    out: Annotated[
        Path | None,
        options.option(
            "--output",
            "Write one .png with all plots, an .svg of a single plot, or a folder with a file per plot.",
            "FILE|DIR",
            short="-o",
        ),
    ] = None,
    html: Annotated[
        Path | None, options.option("--html", "Write an HTML page with all plots and their numbers.", "FILE")
    ] = None,
    format: Annotated[str, options.option("--format", "Format of the files in a folder.", "png|svg")] = "png",
    json: options.Json = False,
) -> None:
    """Plot expert use, cache hit rates, predictions, speed and quantization errors.

    Without -o or --html the plots are drawn in the terminal; files need the extra `plots` (matplotlib). Example:
    mixq plot run.mqt --html experts.html
    """
    options.one_of("--format", format, ("png", "svg"))
    from mixq.measure.plots.sources import figures_of

    figures = [figure for source in sources for figure in figures_of(source)]
    if json:
        output.print_json({"figures": [figure.as_dict() for figure in figures]})
    if out is not None:
        _write(figures, out, format)
    if html is not None:
        _write_page(figures, html, ", ".join(printable(source.name, 60) for source in sources))
        output.note(f"{printable(html)}: {_pictures(figures)}.")
    if out is None and html is None and not json:
        from rich.console import Console

        from mixq.cli.plot_terminal import show

        console = Console(highlight=False, markup=False)
        for figure in figures:
            show(figure, console)


def check_report(path: Path) -> None:
    """Refuse a report file that could not be written, before the job starts.

    Raises:
        UsageError: an ending other than .html or .png, a folder, or a file in a folder that does not exist.
        MixqError: matplotlib is not installed.
    """
    from mixq.measure.plots.draw import check_matplotlib

    if path.suffix.lower() not in (".html", ".png"):
        raise UsageError(f"a report is a .html or .png file, not {printable(path.name)!r}.")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {printable(path.parent)} of the report does not exist.")
    if path.is_dir():
        raise UsageError(f"{printable(path)} is a folder; give the name of a file.")
    check_matplotlib()


def draw_report(path: Path, folder: Path, facts: Iterable[tuple[str, str]] = ()) -> None:
    """Write the plots of a quantized folder, as `mixq plot` draws them, into a .html or .png file."""
    from mixq.measure.plots.from_folder import figures

    if path.suffix.lower() == ".html":
        _write_page(figures(folder, facts), path, printable(folder.name, 60))
    else:
        from mixq.measure.plots.draw import sheet

        atomic_write_bytes(path, sheet(figures(folder, facts)))
    output.note(f"Report: {printable(path)}")


def _write_page(figures: list[Figure], path: Path, title: str) -> None:
    from mixq.measure.plots.page import page

    atomic_write_bytes(path, page(f"mixq: {title}", figures).encode())


def _write(figures: list[Figure], out: Path, format: str) -> None:
    """Write one file with all figures, or a folder with a file per figure."""
    from mixq.measure.plots.draw import picture, sheet

    if out.suffix.lower() in PICTURES:
        if len(figures) == 1:
            atomic_write_bytes(out, picture(figures[0], out.suffix.lower()[1:]))
        elif out.suffix.lower() == ".svg":
            raise UsageError(
                f"An .svg file holds one plot; there are {len(figures)}.", hint="Name a .png file or a folder."
            )
        else:
            atomic_write_bytes(out, sheet(figures))
        output.note(f"{printable(out)}: {_pictures(figures)}.")
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


def _pictures(figures: list[Figure]) -> str:
    return f"{len(figures)} {'picture' if len(figures) == 1 else 'pictures'}"
