"""README.md shows the lowest ratio of all tables, whichever CPU it is from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.accept import tables
from tests.accept.worst_ratios import with_worst_ratios, worst_ratios

FIRST = """# mixq and llama.cpp, One

|  | speed relative to | decode | prompt of 512 |
| --- | --- | --- | --- |
| mixq, default mix | llama.cpp, Q4_0 | 1.10 [1.00-1.20] | 2.00 [1.90-2.10] |
| mixq, nl4 throughout, a folder | llama.cpp, Q4_0 | 0.95 [0.90-1.00] | 3.00 [3.00-3.00] |
| torch | llama.cpp, Q4_0 | 0.10 | 0.10 |
"""
SECOND = """# mixq and llama.cpp, Two

|  | MB per token | decode |
| --- | --- | --- |
| mixq, default mix | 0 | 0.1 |

|  | speed relative to | prompt of 512 | decode |
| --- | --- | --- | --- |
| mixq, default mix | llama.cpp, Q4_0 | 2.50 [2.50-2.50] | 0.90 [0.70-1.30] |
| mixq, nl4 throughout | llama.cpp, Q4_0 | 2.90 [2.00-3.00] |  |
"""


def test_the_lowest_of_each_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name, text in (("one", FIRST), ("two", SECOND), ("quality", "# another\n")):
        (tmp_path / f"peers_{name}.md").write_text(text)
    lines = worst_ratios().splitlines()
    assert lines[2:] == [
        "| mixq, default mix | llama.cpp, Q4_0 | 0.90 [0.70-1.30] | 2.00 [1.90-2.10] |  |",
        "| mixq, nl4 throughout | llama.cpp, Q4_0 | 0.95 [0.90-1.00] | 2.90 [2.00-3.00] |  |",
    ]
    page = "before\n\n" + "\n".join(lines[:2]) + "\n| old |\n\nafter\n\n| another table |\n"
    assert with_worst_ratios(page) == f"before\n\n{worst_ratios()}\nafter\n\n| another table |\n"
