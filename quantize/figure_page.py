"""The report as one page of HTML: tables, and a drawing that was made elsewhere.

Contract: every text is escaped, whatever file it came from; the page has no scripts, and forbids itself to load
anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from mixq.config import format_size
from mixq.errors import printable
from mixq.quantize.report import ErrorRow, SizeTable

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2em auto; max-width: 75em;
       padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } th, td { padding: 0.2em 1.2em 0.2em 0; text-align: left; vertical-align: top; }
thead th, tfoot td { border-bottom: 1px solid #999; } tfoot td { border-top: 1px solid #999; border-bottom: 0; }
td { overflow-wrap: anywhere; } .n { text-align: right; font-variant-numeric: tabular-nums; }
.facts th { font-weight: 600; white-space: nowrap; } code { font-size: 0.92em; }
.scroll { overflow-x: auto; } svg { width: 100%; height: auto; min-width: 45em; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    sizes: SizeTable,
    worst: Sequence[ErrorRow],
    others: Sequence[tuple[str, float]],
    svg: str,
) -> str:
    """Return the page; `svg` is markup that matplotlib made, `others` errors that the drawing has no place for."""
    shown = escape(printable(title))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width">
<title>{shown}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{shown}</h1>
<table class="facts">
{_lines(f"<tr><th>{escape(printable(name))}</th><td>{escape(printable(text, 2000))}</td></tr>" for name, text in facts)}
</table>
<div class="scroll">
{svg}</div>
<h2>Lost most</h2>
<p>Squared error of a Linear's weights over their squared sum; by group: the mean of the same over its groups, far
above the other where a row has outliers; ratio: the larger of the two over what normally distributed weights lose.</p>
<table>
<thead><tr><th>Linear</th><th>scheme</th><th class="n">error</th><th class="n">by group</th>
<th class="n">ratio</th></tr></thead>
{_lines(map(_error, worst))}
</table>
{_beside(others)}<h2>Sizes</h2>
<table>
<thead><tr><th>part</th><th>scheme</th><th class="n">tensors</th><th class="n">weights</th><th class="n">bytes</th>
<th class="n">bits a weight</th></tr></thead>
{_sizes(sizes)}
</table>
<p>Computing one token reads {format_size(sizes.token_bytes)}.{_source(sizes)}</p>
</body>
</html>
"""


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows)


def _numbers(*texts: str) -> str:
    return "".join(f'<td class="n">{text}</td>' for text in texts)


def _name(text: str) -> str:
    return f"<td><code>{escape(printable(text))}</code></td>"


def _error(row: ErrorRow) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    figures = _numbers(f"{row.relative_squared_error:#.3g}", f"{row.group_error:#.3g}", ratio)
    return f"<tr>{_name(row.linear)}{_name(row.scheme)}{figures}</tr>"


def _beside(others: Sequence[tuple[str, float]]) -> str:
    if not others:
        return ""
    rows = _lines(f"<tr>{_name(name)}{_numbers(f'{error:#.3g}')}</tr>" for name, error in others[:50])
    return f"<h2>Beside the layers</h2>\n<table>\n{rows}\n</table>\n"


def _sizes(sizes: SizeTable) -> str:
    rows = [
        f"<tr><td>{escape(printable(row.part))}</td>{_name(row.scheme)}"
        + _numbers(f"{row.tensors:,}", f"{row.weights:,}", f"{row.nbytes:,}", f"{row.bits_per_weight:.2f}")
        + "</tr>"
        for row in sizes.rows
    ]
    bits = sizes.nbytes * 8 / max(1, sizes.weights)
    tensors = sum(row.tensors for row in sizes.rows)
    total = _numbers(f"{tensors:,}", f"{sizes.weights:,}", f"{sizes.nbytes:,}", f"{bits:.2f}")
    return _lines(rows) + f"\n<tfoot><tr><td>total</td><td></td>{total}</tr></tfoot>"


def _source(sizes: SizeTable) -> str:
    if not sizes.source_bytes:
        return ""
    times = sizes.source_bytes / max(1, sizes.nbytes)
    return f" The source has {format_size(sizes.source_bytes)}, {times:.1f} times as much."
