"""What must hold on a machine without triton, or without a GPU; and that kernels compile for GPUs that are not here."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mixq.kernels import triton as package


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_mixq_imports_no_triton() -> None:
    modules = "mixq.engine.model, mixq.kernels.dispatch, mixq.kernels.triton"
    code = f"import sys, mixq, {modules}; print('triton' in sys.modules)"
    assert run(code).strip() == "False"


def test_the_package_can_be_imported_without_triton_and_says_so() -> None:
    code = "import sys; sys.modules['triton'] = None; from mixq.kernels import triton as t; print(t.import_reason())"
    assert "triton" in run(code).lower()


def test_there_is_a_reason_where_there_is_no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    reason = package.unavailable_reason()
    assert reason is not None
    assert reason.endswith(".")


@pytest.mark.parametrize(("found", "capability", "said"), [(False, (9, 0), "no CUDA GPU"), (True, (6, 1), "6.1")])
def test_gpus_that_are_not_taken(
    found: bool, capability: tuple[int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert said in (package.unavailable_reason() or "")


def test_launching_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "gcc" in (package.compiler_reason() or "")
    monkeypatch.setenv("CC", "cc")
    assert package.compiler_reason() is None
