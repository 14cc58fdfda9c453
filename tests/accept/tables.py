"""Writes the committed tables: one Markdown file per measurement, and README.md, which shows them all.

`python -m tests.accept.tables` makes README.md again from results/*.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"

INTRODUCTION = """# Measured tables

`make accept` measures most of these tables into `results/` and builds this page; a table made by another command names
that command. Unless a table says otherwise, speeds are from two cores of a shared server: compare ratios within one
run, not speeds of different runs. No test depends on a speed.
"""

PEERS_TITLE = "# mixq and llama.cpp, "
"""How the comparisons with llama.cpp begin; the kind of CPU follows."""

SECTIONS = {
    "Speed": ("cpu_speed", "folder", "batching"),
    "The expert cache": ("vram", "miss_modes", "hit_rates", "recall", "overlap", "ram_tier", "triton_compile"),
    "Quality": ("scheme_overview", "demo_model", "schemes", "peers_quality", "channel_orders", "parity"),
    "Quantizing": ("full_size", "safety"),
    "Plans and replay": ("plan", "budgets", "replay"),
    "Front ends": ("make_chat", "server"),
}
"""The results of each section of README.md, by file name; "Speed" begins with those of `peer_tables`."""


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def write(name: str, title: str, how: str, *tables: str) -> None:
    """Write results/NAME.md (a title, how it was measured, the tables) and README.md; print the former."""
    RESULTS.mkdir(exist_ok=True)
    text = f"# {title}\n\n{how}\n\n" + "\n".join(tables)
    (RESULTS / f"{name}.md").write_text(text)
    PAGE.write_text(page())
    print(f"\n{text}")


def peer_tables() -> dict[str, str]:
    """Return the comparisons with llama.cpp by kind of CPU, such as "AMD Zen 4": one file each, peers_KIND.md."""
    listed = {name for names in SECTIONS.values() for name in names}
    texts = [path.read_text() for path in sorted(RESULTS.glob("peers_*.md")) if path.stem not in listed]
    return {text.partition("\n")[0].removeprefix(PEERS_TITLE): text for text in texts}


def page() -> str:
    """Return README.md: every result under the heading of its section."""
    parts = [INTRODUCTION]
    for section, names in SECTIONS.items():
        parts.append(f"\n## {section}\n")
        texts = [(RESULTS / f"{name}.md").read_text() for name in names]
        if section == "Speed":
            peers = peer_tables()
            parts.append(f"\nmixq and llama.cpp are compared on each kind of CPU by itself: {'; '.join(peers)}.\n")
            texts = [*peers.values(), *texts]
        parts.extend("\n##" + text for text in texts)
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
