"""A small checkpoint, and the folder that quantizing it without interruption gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixq.quantize.job import quantize
from tests.quantize.disasters import Contents, contents, write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> Contents:
    quantize(source, tmp_path / "expected")
    return contents(tmp_path / "expected")
