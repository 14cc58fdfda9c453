"""Writes what the pages show of the code and of measured tables: the table of a folder's files, from the first line of
each docstring, and the lowest ratios to llama.cpp.

`python -m tests.pages` writes them again; `tests/test_readme.py` compares them.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.accept.worst_ratios import with_worst_ratios

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
HEADING = "## The code\n"
FOLDERS = [ROOT / "quantize", *(ROOT / "mixq" / name for name in ("server", "plan", "experts", "kernels"))]


def code_table(folder: Path) -> str:
    """Return a Markdown table of the Python files of a folder."""
    lines = ["| file | what it does |", "| --- | --- |"]
    for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.relative_to(folder).parts), path)):
        if path.name == "__init__.py":
            continue
        name = path.relative_to(folder).as_posix()
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        first = " ".join(text.split("\n\n")[0].split())
        lines.append(f"| [{name}]({name}) | {first} |")
    return "\n".join(lines) + "\n"


def with_code_table(folder: Path) -> str:
    """Return a folder's page with its table of files as it should be."""
    text = (folder / "README.md").read_text()
    before, heading, after = text.partition(HEADING)
    introduction = after.partition("| file |")[0]
    return before + heading + introduction + code_table(folder)


if __name__ == "__main__":
    for folder in FOLDERS:
        (folder / "README.md").write_text(with_code_table(folder))
    README.write_text(with_worst_ratios(README.read_text()))
