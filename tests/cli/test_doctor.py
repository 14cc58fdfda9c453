"""`mixq doctor`: one page, one document, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mixq.errors import DoesNotFitError
from mixq.measure.machine import diagnosis, probe, problems
from mixq.measure.machine.diagnosis import Diagnosis, diagnose
from mixq.plan.computer import Computer
from mixq.plan.presets import COMPUTERS
from mixq.system import huge_pages, memory
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
    assert len(outcome.out.splitlines()) <= 30  # of 80 columns; the test's own folders are long
    for label in ("CPU", "features", "kernels", "check", "torch", "GPU", "memory", "RAM", "disk", "model store"):
        assert f"\n{label} " in outcome.out
    assert "bitsandbytes" in outcome.out
    assert mixq_home.name in outcome.out.replace("\n", "").replace(" ", "")


def test_json_has_every_fact(cli: RunCli) -> None:
    outcome = cli("doctor", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 0
    assert document["usable"] is True
    assert document["isa"] in (*document["isas"], "reference")
    assert document["memory_bytes"] > document["memory_free_bytes"] > 0


@pytest.mark.parametrize(
    ("files", "memory", "said"),
    [
        (True, True, "huge pages model files are mapped in them"),
        (True, False, "huge pages model files are mapped in them"),
        (False, True, "huge pages model files are copied into them, if the free memory is enough"),
        (None, True, "huge pages model files are copied into them, if the free memory is enough"),
        (False, False, "huge pages none: model files are mapped in pages of 4 KiB"),
    ],
)
def test_where_weights_are_in_huge_pages(
    cli: RunCli, monkeypatch: pytest.MonkeyPatch, files: bool | None, memory: bool, said: str
) -> None:
    pretend(monkeypatch, files_in_huge_pages=files, memory_in_huge_pages=memory)
    assert said in " ".join(cli("doctor").out.split())


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
    assert "read at 76.0 GB/s, by the decode kernels at 68.4 GB/s" in said
    assert "8.0 GB, 7.2 GB free, read at 218.0 GB/s; prompts 25.00 TFLOPS" in said
    assert "locked RAM no limit; passing a row to the CPU and back takes 60 µs" in said
    assert "12.0 GB/s to the GPU, 12.0 GB/s back, 10.8 GB/s while the CPU computes" in said


def test_when_figures_were_measured_and_what_disturbed_them(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    for load, words in ((0.34, "2026-12-01, while other programs used 34% of the processor;"), (0.2, "2026-12-01;")):
        found = replace(COMPUTERS["laptop-8gb"], load=load, measured="2026-12-01")
        monkeypatch.setattr(probe, "probe", lambda *, refresh=False, found=found: found)
        assert words in " ".join(cli("doctor").out.split())


def test_a_hardware_file_for_another_place(cli: RunCli, tmp_path: Path) -> None:
    saved = tmp_path / "laptop.json"
    assert cli("doctor", "--save", str(saved)).code == 0
    assert Computer.read(saved) == COMPUTERS["laptop-8gb"]
    outcome = cli("plan", "--hardware", str(saved), "--json")
    assert json.loads(outcome.out)["computer"] == COMPUTERS["laptop-8gb"].name


def test_a_hardware_file_where_none_can_be_written(cli: RunCli, tmp_path: Path) -> None:
    outcome = cli("doctor", "--save", str(tmp_path / "nowhere" / "laptop.json"))
    assert outcome.code == 5
    assert "cannot be written" in outcome.err


def test_what_is_wrong_and_what_to_do(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    laptop = COMPUTERS["laptop-8gb"]
    assert laptop.gpu is not None
    slow = replace(
        laptop,
        ram_free=16 * 10**9,
        disk_bandwidth=0.5e9,
        cpu=replace(laptop.cpu, read_bandwidth=9e9),
        gpu=replace(laptop.gpu, pinned_limit=1 << 30),
        versions={problems.NOT_MEASURED: "it is full."},
        load=0.25,
    )
    monkeypatch.setattr(probe, "probe", lambda *, refresh=False: slow)
    pretend(
        monkeypatch,
        gpu="Some GPU",
        gpu_use="no compiler.",
        features=("sse",),
        isa_forced=False,
        native_reason=None,
        memory_bytes=32 * 10**9,
        logical_cpus=8,
    )
    inner = tmp_path / "group" / "user" / "session"  # the outer group has the smaller limit, as systemd may set it
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("16000000000\n")
    (inner / "cpu.max").write_text("150000 100000\n")
    (inner.parent / "cpu.max").write_text("max 100000\n")
    (tmp_path / "own").write_text("0::/user/session\n")
    (tmp_path / "huge").write_text("always madvise [never]\n")
    (tmp_path / "meminfo").write_text("SwapTotal: 8000000 kB\nSwapFree: 1000000 kB\n")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path / "group")
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "huge")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    found = json.loads(cli("doctor", "--json").out)["problems"]
    said = " ".join(problem["what"] for problem in found)
    for words in (
        "The processor has no AVX2",
        "Other programs took 25% of the processor while measuring",
        "Some GPU is not used: no compiler.",
        "Some GPU could not be measured: it is full.",
        "16.0 GB of RAM are free, and mixq leaves 5% of that unused",
        "The disk reads 500.0 MB/s",
        "RAM is read at 9.0 GB/s",
        "locks at most 1.1 GB of memory",
        "may use 16.0 GB of the machine's 32.0 GB",
        "may use 1.5 of the machine's 8 CPUs",
        "Transparent huge pages are off",
        "7.2 GB of memory are swapped out",
    ):
        assert words in said
    assert all(problem["remedy"] for problem in found)
    assert f"! {found[0]['what']}" in " ".join(cli("doctor").out.split())


def test_a_healthy_machine_has_no_problems(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    features = ("avx2", "avx512_vnni")
    healthy = {"gpu": "Some GPU", "gpu_use": None, "native_reason": None, "isa_forced": False, "features": features}
    pretend(monkeypatch, kernels_right=True, build_log=None, **healthy)
    system = ("_MEMINFO", "_CONTROL_GROUPS", "_OWN_GROUP")
    for module, names in {problems: ("_NVIDIA",), huge_pages: ("SETTING",), memory: system}.items():
        for name in names:
            monkeypatch.setattr(module, name, tmp_path / "not there")
    assert json.loads(cli("doctor", "--json").out)["problems"] == []
    assert "no problems found" in cli("doctor").out


def test_an_nvidia_gpu_that_torch_does_not_see(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, gpu=None, gpu_use="torch was built without CUDA.")
    monkeypatch.setattr(problems, "_NVIDIA", tmp_path / "version")
    assert "NVIDIA" not in cli("doctor").out
    (tmp_path / "version").touch()
    said = " ".join(cli("doctor").out.split())
    assert "The NVIDIA GPU is not used: torch was built without CUDA." in said


def test_too_little_memory_to_measure(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*, refresh: bool = False) -> Computer:
        raise DoesNotFitError("The system refused 375.0 MB of memory.")

    monkeypatch.setattr(probe, "probe", refuse)
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "Not enough free memory" in outcome.out
    assert "\nmemory " in outcome.out
    assert json.loads(cli("doctor", "--json").out)["hardware"] is None
    assert cli("doctor", "--save", str(tmp_path / "file")).code == 4
    assert not (tmp_path / "file").exists()


def test_this_machine_is_measured_once(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "current_load", lambda: None)  # else a busy machine that becomes quiet is measured again
    first = cli("doctor", "--json")
    assert "Measuring this computer" in first.err
    hardware = json.loads(first.out)["hardware"]
    assert hardware["cpu"]["read_bandwidth"] >= hardware["cpu"]["kernel_bandwidth"] > 1e6
    assert 0 <= hardware["cpu"]["layer_seconds"] < 1
    second = cli("doctor", "--json")
    assert second.err == ""
    assert json.loads(second.out)["hardware"]["cpu"] == hardware["cpu"]
