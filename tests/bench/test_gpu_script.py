"""`gpu.py` without a GPU, on tiny sizes: every section runs, and what it found is in both files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import gpu
from tests.bench.gpu_report import MAKERS, report

SECTIONS = ("machine", "operations", "demo", "speed", "model", "transformers")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, gpu.__file__, "--device", "sim", "--quick", "--minutes", "30", "--out", str(folder)]
    subprocess.run(command, check=False, timeout=1800)  # a guard against hangs: it takes a minute or two
    return folder


@pytest.fixture(scope="module")
def sections(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((out / "gpu.json").read_text())["sections"]
    return found


def test_every_section_runs_and_finds_nothing_wrong(sections: dict[str, dict[str, Any]]) -> None:
    """On busy cores a section may find no time for all of its cases; it says so."""
    assert tuple(sections) == SECTIONS == tuple(gpu.SECTIONS) == tuple(MAKERS)
    for name, section in sections.items():
        assert [error for error in section["errors"] if "its time was over" not in error] == [], name
    assert sections["machine"]["copy_bytes_per_second"] > 0
    assert any(case.get("right") for case in sections["operations"]["cases"])
    assert all(row["same_bits"] for row in sections["demo"]["logits"] if "same_bits" in row)


def test_the_page_has_a_part_for_each(out: Path) -> None:
    page = (out / "gpu.md").read_text()
    assert all(f"## {name}" in page for name in SECTIONS)
    assert sorted(path.name for path in out.iterdir()) == ["gpu.json", "gpu.md"]


def test_what_a_section_found_before_it_failed_is_kept() -> None:
    merged: dict[str, Any] = {"errors": ["killed"]}
    gpu._merge(merged, {"errors": ["wrong"], "rows": [1], "budgets": {"8GB": {"slots": 3}}})
    gpu._merge(merged, {"errors": [], "rows": [2], "budgets": {"12GB": {"slots": 5}}})
    assert merged == {
        "errors": ["killed", "wrong"],
        "rows": [1, 2],
        "budgets": {"8GB": {"slots": 3}, "12GB": {"slots": 5}},
    }


def test_a_page_of_sections_that_found_nothing() -> None:
    found = {"arguments": {"device": "cuda"}, "sections": {name: {"errors": ["it broke"]} for name in SECTIONS}}
    assert report(found).count("it broke") == len(SECTIONS)
