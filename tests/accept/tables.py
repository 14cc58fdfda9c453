"""Writes the committed tables that the README quotes: one Markdown file per measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def write(name: str, title: str, how: str, *tables: str) -> None:
    """Write results/NAME.md: a title, how it was measured, the tables; and print them."""
    RESULTS.mkdir(exist_ok=True)
    text = f"# {title}\n\n{how}\n\n" + "\n".join(tables)
    (RESULTS / f"{name}.md").write_text(text)
    print(f"\n{text}")
