"""Which experts answered: counted, and readable with and without colour."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mixq.chat.heat_map import ExpertUse, heat_map


def use(layers: int = 2, experts: int = 4) -> ExpertUse:
    counted = ExpertUse(experts)
    for token in range(4):
        counted.add([(0, 1 + (token + layer) % (experts - 1)) for layer in range(layers)])
    return counted


def lines(counted: ExpertUse, width: int, *, unicode: bool = True) -> list[str]:
    return [line.plain for line in heat_map(counted, width, unicode=unicode)]


def test_shares_are_counted() -> None:
    counted = use()
    assert counted.tokens == 4
    assert [counted.share(0, expert) for expert in range(4)] == [1.0, 0.5, 0.25, 0.25]
    assert counted.busiest == (1.0, 0, 0)
    assert counted.unused == 0


def test_map_reads_without_colour() -> None:
    assert lines(use(), 80) == [
        "4 tokens · 2 layers × 4 experts: columns are layers",
        "    0       1",
        "  0 ██ 100% ██ 100%",
        "  1 ▒▒  50% ░░  25%",
        "  2 ░░  25% ▒▒  50%",
        "  3 ░░  25% ░░  25%",
        "    ░░░░▒▒▓▓▓▓██  up to 100% of the tokens",
        "busiest: expert 0 of layer 0, for 100% of the tokens",
    ]
    assert lines(use(), 80, unicode=False)[2] == "  0 ## 100% ## 100%"
    assert all(line.isascii() for line in lines(use(), 80, unicode=False))


@pytest.mark.parametrize(("layers", "width", "bands"), [(32, 80, 1), (32, 20, 3), (56, 80, 1), (56, 40, 2), (1, 6, 1)])
def test_map_fits_the_window(layers: int, width: int, bands: int) -> None:
    drawn = lines(use(layers, 8), width)
    rows = [line for line in drawn if re.match(r"  \d( |$)", line)]
    assert len(rows) == 8 * bands
    assert max(map(len, rows)) < width
    assert "".join(row[4:] for row in rows if row.startswith("  0 ")).count("█") >= layers


def test_colour_says_the_same() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    for line in heat_map(use(), 80):
        console.print(line)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("\x1b[38;2;232;116;59m██") >= 2


def test_unused_experts_are_counted() -> None:
    counted = ExpertUse(4)
    counted.add([(0, 1)])
    assert lines(counted, 80)[-1] == "2 of 4 experts were not used"
