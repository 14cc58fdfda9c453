"""A quantized folder to draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixq.quantize.job import quantize
from mixq.system import paths


@pytest.fixture(scope="session")
def quantized_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("plots") / "demo-nl4"
    quantize(paths.demo_source(), target)
    return target
