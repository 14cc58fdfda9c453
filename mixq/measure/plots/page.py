"""Figures as one page of HTML that needs nothing else: pictures inside, no script, no style from elsewhere.

Contract: every text is escaped; the page forbids by its own policy what it does not have. Light and dark by the
reader's choice; pictures keep a white ground. The numbers behind each figure stand below it, for those who cannot see
it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from mixq.measure.plots.draw import picture
from mixq.measure.plots.figure import Chart, Figure, HeatMap

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
figure { margin: 0 0 2.5rem; }
img { background: #fff; border-radius: 6px; max-width: 100%; height: auto; }
summary { cursor: pointer; font-size: .85rem; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid #8884; padding: .1rem .6rem; text-align: right; }
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
    image = base64.b64encode(picture(figure, "svg")).decode()
    return (
        f'<figure id="{html.escape(figure.name)}">\n<h2>{html.escape(figure.title)}</h2>\n'
        f'<img alt="{html.escape(figure.title)}" src="data:image/svg+xml;base64,{image}">\n'
        f'<details><summary>Numbers</summary><div class="numbers">{_numbers(figure)}</div></details>\n</figure>'
    )


def _numbers(figure: Figure) -> str:
    if isinstance(figure, HeatMap):
        head = [f"{figure.rows} \\ {figure.columns}", *map(str, range(len(figure.values[0])))]
        rows = [[str(number), *(_shown(value) for value in row)] for number, row in enumerate(figure.values)]
        return _table(head, rows)
    return "".join(_series(figure, number) for number in range(len(figure.series)))


def _series(figure: Chart, number: int) -> str:
    series = figure.series[number]
    points = [[_shown(x), _shown(y)] for x, y in series.points]
    return f"<h3>{html.escape(series.name)}</h3>" + _table([figure.x, figure.y], points)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _shown(value: float) -> str:
    return f"{value:.4g}"
