"""What all tests share: two threads at most, and a home of their own for everything mixq writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def mixq_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point $MIXQ_HOME into a temporary folder, so that no test touches the user's models and cache."""
    home = tmp_path_factory.mktemp("mixq-home")
    monkeypatch.setenv("MIXQ_HOME", str(home))
    return home
