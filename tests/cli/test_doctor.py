"""`mixq doctor`: one page, one document, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mixq import diagnosis
from mixq.diagnosis import Diagnosis, diagnose
from tests.cli.conftest import RunCli


def pretend(monkeypatch: pytest.MonkeyPatch, **facts: object) -> Diagnosis:
    found = replace(diagnose(), **facts)  # type: ignore[arg-type]
    monkeypatch.setattr(diagnosis, "diagnose", lambda: found)
    return found


def test_one_page(cli: RunCli, mixq_home: Path) -> None:
    outcome = cli("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.splitlines()) < 40
    for label in ("CPU", "features", "kernels", "check", "torch", "GPU", "bitsandbytes", "memory", "model store"):
        assert f"\n{label} " in outcome.out
    assert mixq_home.name in outcome.out.replace("\n", "").replace(" ", "")


def test_json_has_every_fact(cli: RunCli) -> None:
    outcome = cli("doctor", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 0
    assert document["usable"] is True
    assert document["isa"] in (*document["isas"], "reference")
    assert document["memory_bytes"] > document["memory_free_bytes"] > 0


def test_why_there_are_no_native_kernels(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "native/linear.cpp:3:1: error: \x1b[31mno\n" * 30 + "the last line"
    reason = f"The native library could not be built when mixq was installed: {said}"
    pretend(monkeypatch, isa="reference", isas=(), native_library=None, native_reason=reason, build_log=said)
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "torch's, slow." in outcome.out
    assert "see below" in outcome.out
    assert "the last line" in outcome.out
    assert "\x1b" not in outcome.out
    assert len(outcome.out.splitlines()) < 50
    assert "Install a compiler" in outcome.err


def test_wrong_kernels_end_with_1(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, isa="avx2", kernels_right=False)
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "WRONG" in outcome.out
    assert "MIXQ_CPU_ISA=reference" in outcome.err


def test_a_gpu_is_named_and_its_use_said(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpu="Some GPU", gpu_use="no compiler.")
    assert "Some GPU, not used: no compiler." in " ".join(cli("doctor").out.split())
    pretend(monkeypatch, gpu="Some GPU", gpu_use=None)
    assert "Some GPU, with Triton kernels" in " ".join(cli("doctor").out.split())
    pretend(monkeypatch, gpu=None, gpu_use="torch was built without CUDA.")
    assert "none: torch was built without CUDA." in " ".join(cli("doctor").out.split())
