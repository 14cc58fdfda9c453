"""What all tests share: two threads at most, Ctrl-C as in a terminal, and a home of their own for what mixq writes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
SLOW = (
    "bench/test_gpu_script.py",
    "chat/test_terminal_chat.py",
    "cli/test_doctor.py",
    "cli/test_main.py",
    "cli/test_plan.py",
    "experts/accelerators/test_simulated.py",
    "experts/test_engine_and_replay_agree.py",
    "experts/test_placement_keeps_answers.py",
    "formats/test_hostile_folder.py",
    "kernels/test_native_experts.py",
    "kernels/triton",
    "measure/plots/test_folder.py",
    "measure/suite/test_execution.py",
    "models/test_notebook.py",
    "plan/test_planner.py",
    "plan/test_replay.py",
    "plan/test_sweep.py",
    "quantize/test_calibrate.py",
    "quantize/test_interruption.py",
    "quantize/test_disk_failures.py",
    "quantize/test_kills.py",
    "server",
    "test_packaging.py",
    "test_readme.py",
    "text/test_json_tokenizer.py",
    "text/test_tokenizer.py",
)
"""Files and folders that take long by themselves: processes, browsers, servers, interpreters."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(HERE).as_posix()
        if path.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def mixq_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point $MIXQ_HOME into a temporary folder, so that no test touches the user's models and cache."""
    home = tmp_path_factory.mktemp("mixq-home")
    monkeypatch.setenv("MIXQ_HOME", str(home))
    return home
