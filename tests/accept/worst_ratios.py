"""The lowest ratios to llama.cpp among the tables of all kinds of CPU: what README.md shows.

Contract: reads the tables of ratios in results/peers_KIND.md. A folder's rows count as rows of the same mix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.accept.tables import markdown, peer_tables

RATIO = "speed relative to"
"""Head of the column that names the other program in a table of ratios."""
MEASURES = ("decode", "prompt of 512", "prompt of 128")
HEADER = ("", RATIO, *MEASURES)
_DEFAULT, _NL4 = "mixq, default mix", "mixq, nl4 throughout"
_Q4_0, _Q4_K_M, _IQ4_XS = (f"llama.cpp, {name}" for name in ("Q4_0", "Q4_K_M", "IQ4_XS"))
PAIRS = [
    (_DEFAULT, _Q4_K_M),
    (_DEFAULT, _IQ4_XS),
    (_DEFAULT, _Q4_0),
    (_NL4, _Q4_0),
    *((f"{_NL4}, {state}", f"{_Q4_0}, {state}") for state in ("AVX2", "beside a busy process")),
]
"""Sides in README.md: formats of the same purpose."""


def worst_ratios() -> str:
    """Return the Markdown table: the lowest figure of each pair, as its table has it."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for text in peer_tables().values():
        for ours, theirs, measure, cell in _ratios(text.splitlines()):
            found.setdefault((ours.replace(", a folder", ""), theirs, measure), []).append(cell)
    rows = []
    for ours, theirs in PAIRS:
        cells = [min(found.get((ours, theirs, measure), [""]), key=_median) for measure in MEASURES]
        if any(cells):
            rows.append([ours, theirs, *cells])
    return markdown(HEADER, rows)


def with_worst_ratios(page: str) -> str:
    """Return README.md's text with its table of ratios as it should be."""
    head = markdown(HEADER, [])
    before, _, after = page.partition(head)
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        del rest[0]
    return before + worst_ratios() + "".join(rest)


def _ratios(lines: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield our side, theirs, measure and cell of every ratio."""
    header: list[str] = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
        elif RATIO in header and set(cells) != {"---"}:
            for measure, cell in zip(header[2:], cells[2:], strict=True):
                if measure in MEASURES and cell:
                    yield cells[0], cells[1], measure, cell


def _median(cell: str) -> float:
    return float(cell.split()[0]) if cell else 0.0
