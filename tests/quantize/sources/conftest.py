"""A small checkpoint that is written as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.checkpoints import write_tiny_mixtral
from tests.gguf_files import raw_config

TINY = {"hidden": 256, "ffn": 256, "layers": 2, "experts": 4}


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A tiny Mixtral in the folder "hf", with its config.json."""
    tensors = write_tiny_mixtral(tmp_path / "hf", **TINY, tokenizer=False)
    return tensors, raw_config(tmp_path / "hf")
