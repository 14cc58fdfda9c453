"""`mixq doctor`: one page, one document, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mixq import diagnosis, problems
from mixq.bench import probe
from mixq.diagnosis import Diagnosis, diagnose
from mixq.plan.computer import Computer
from mixq.plan.presets import COMPUTERS
from tests.cli.conftest import RunCli


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nothing is measured but where a test is about that."""
    if request.node.name != "test_this_machine_is_measured_once":
        monkeypatch.setattr(probe, "probe", lambda *, refresh=False: COMPUTERS["laptop-8gb"])
        monkeypatch.setattr(probe, "cached", lambda: COMPUTERS["laptop-8gb"])


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
    assert "Install a compiler" in outcome.out


def test_wrong_kernels_end_with_1(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, isa="avx2", kernels_right=False)
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "WRONG" in outcome.out
    assert "MIXQ_CPU_ISA=reference" in outcome.out


def test_a_gpu_is_named_and_its_use_said(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpu="Some GPU", gpu_use="no compiler.")
    assert "Some GPU, not used: no compiler." in " ".join(cli("doctor").out.split())
    pretend(monkeypatch, gpu="Some GPU", gpu_use=None)
    assert "Some GPU, with Triton kernels" in " ".join(cli("doctor").out.split())
    pretend(monkeypatch, gpu=None, gpu_use="torch was built without CUDA.")
    assert "none: torch was built without CUDA." in " ".join(cli("doctor").out.split())


def test_figures_of_memory_link_and_gpu(cli: RunCli) -> None:
    said = " ".join(cli("doctor").out.split())
    assert "76.0 GB/s; the decode kernels read experts at 68.4 GB/s" in said
    assert "12.0 GB/s to the GPU, 12.0 GB/s back, 10.8 GB/s while the CPU computes" in said


def test_a_hardware_file_for_another_place(cli: RunCli, tmp_path: Path) -> None:
    saved = tmp_path / "laptop.json"
    assert cli("doctor", "--save", str(saved)).code == 0
    assert Computer.read(saved) == COMPUTERS["laptop-8gb"]
    outcome = cli("plan", "--hardware", str(saved), "--json")
    assert json.loads(outcome.out)["computer"] == COMPUTERS["laptop-8gb"].name


def test_what_is_wrong_and_what_to_do(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = replace(
        COMPUTERS["laptop-8gb"],
        ram_free=16 * 10**9,
        disk_bandwidth=0.5e9,
        cpu=replace(COMPUTERS["laptop-8gb"].cpu, read_bandwidth=9e9),
    )
    monkeypatch.setattr(probe, "probe", lambda *, refresh=False: slow)
    pretend(monkeypatch, gpu="Some GPU", gpu_use="no compiler.", features=("sse",), isa_forced=False)
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text("16000000000\n")
    (group / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "huge").write_text("always madvise [never]\n")
    (tmp_path / "meminfo").write_text("SwapTotal: 8000000 kB\nSwapFree: 1000000 kB\n")
    monkeypatch.setattr(problems, "_GROUP", group)
    monkeypatch.setattr(problems, "_HUGE_PAGES", tmp_path / "huge")
    monkeypatch.setattr(problems, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(problems, "_locked_limit", lambda: 64 << 10)
    found = json.loads(cli("doctor", "--json").out)["problems"]
    said = " ".join(problem["what"] for problem in found)
    for words in (
        "Some GPU is not used: no compiler.",
        "does not fit into the 16.0 GB of RAM",
        "The disk reads 500.0 MB in a second",
        "RAM is read at 9.0 GB/s",
        "may lock 65.5 kB of memory",
        "may use 16.0 GB of the machine's 32.0 GB",
        "may use 1.5 of 8 cores",
        "Transparent huge pages are off",
        "7.2 GB of memory are swapped out",
    ):
        assert words in said
    assert all(problem["remedy"] for problem in found)
    assert f"! {found[0]['what']}" in cli("doctor").out


def test_this_machine_is_measured_once(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cli("doctor", "--json")
    assert "Measuring this computer" in first.err
    hardware = json.loads(first.out)["hardware"]
    assert hardware["cpu"]["read_bandwidth"] >= hardware["cpu"]["kernel_bandwidth"] > 1e9
    assert 0 < hardware["cpu"]["layer_seconds"] < 0.01
    second = cli("doctor", "--json")
    assert second.err == ""
    assert json.loads(second.out)["hardware"]["cpu"] == hardware["cpu"]
    monkeypatch.setattr(probe, "_versions", lambda: {"mixq": "another"})
    assert probe.cached() is None
    (probe.paths.cache() / probe.FILE_NAME).write_text("{")
    assert probe.cached() is None
