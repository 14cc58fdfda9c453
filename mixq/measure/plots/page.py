"""Figures as one self-contained HTML page: embedded pictures, no scripts, no external styles.

Contract: every text is escaped, and the page's content security policy forbids scripts and loading. Light or dark as in
the reader's settings; pictures have a white background. Each figure is followed by its numbers, for readers who cannot
see it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from mixq.measure.plots.draw import picture
from mixq.measure.plots.figure import Bars, Chart, Figure, HeatMap, Table

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
figure { margin: 0 0 2.5rem; }
img { background: #fff; border-radius: 6px; max-width: 100%; height: auto; }
summary { cursor: pointer; font-size: .85rem; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid #8884; overflow-wrap: anywhere; padding: .1rem .6rem; text-align: right; }
figure > table :is(td, th) { text-align: left; }
.numbers { max-height: 24rem; overflow: auto; }
"""


def page(title: str, figures: Sequence[Figure]) -> str:
    """Return the page.

    Raises:
        MixqError: matplotlib is not installed.
    """
    body = "\n".join(_figure(figure) for figure in figures)
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )


def _figure(figure: Figure) -> str:
    name, title = html.escape(figure.name), html.escape(figure.title)
    if isinstance(figure, Table):
        return f'<figure id="{name}">\n<h2>{title}</h2>\n{_table(figure.head, figure.rows)}\n</figure>'
    image = base64.b64encode(picture(figure, "svg")).decode()
    return (
        f'<figure id="{name}">\n<h2>{title}</h2>\n<img alt="{title}" src="data:image/svg+xml;base64,{image}">\n'
        f'<details><summary>Numbers</summary><div class="numbers">{_numbers(figure)}</div></details>\n</figure>'
    )


def _numbers(figure: HeatMap | Chart | Bars) -> str:
    if isinstance(figure, HeatMap):
        head = [f"{figure.rows} \\ {figure.columns}", *map(str, range(len(figure.values[0])))]
        return _table(head, [[str(number), *map(_shown, row)] for number, row in enumerate(figure.values)])
    if isinstance(figure, Bars):
        return _table(("", figure.x, ""), [(label, _shown(amount), note) for label, amount, note in figure.bars])
    return "".join(
        f"<h3>{html.escape(series.name)}</h3>"
        + _table([figure.x, figure.y], [[_shown(x), _shown(y)] for x, y in series.points])
        for series in figure.series
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
