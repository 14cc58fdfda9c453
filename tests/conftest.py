"""What all tests share: two threads at most, Ctrl-C as in a terminal, and a home of their own for what mixq writes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def mixq_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point $MIXQ_HOME into a temporary folder, so that no test touches the user's models and cache."""
    home = tmp_path_factory.mktemp("mixq-home")
    monkeypatch.setenv("MIXQ_HOME", str(home))
    return home
