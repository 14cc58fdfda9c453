"""The probe: measured once, kept as long as it holds, and figures that a hardware file takes, whatever the machine."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mixq.errors import DoesNotFitError
from mixq.kernels import triton
from mixq.measure.machine import passes, probe, probe_cpu, probe_gpu
from mixq.measure.machine.problems import NOT_MEASURED
from mixq.plan.computer import Computer, GpuFigures
from mixq.plan.presets import COMPUTERS
from mixq.system import load, paths

LAPTOP = COMPUTERS["laptop-8gb"]
GPU = LAPTOP.gpu
assert GPU is not None


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is measured; what would have been is noted here."""
    notes: list[str] = []

    def cpu(*, refresh: bool = False) -> probe_cpu.CpuFigures:
        notes.append("cpu")
        return LAPTOP.cpu

    def gpu() -> GpuFigures:
        notes.append("gpu")
        assert GPU is not None
        return GPU

    monkeypatch.setattr(probe, "measure_cpu", cpu)
    monkeypatch.setattr(probe, "measure_gpu", gpu)
    monkeypatch.setattr(probe, "disk_bandwidth", lambda: 1e9)
    return notes


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices so small that everything is measured in no time."""
    tiny = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    tiny |= {"head_dim": 64, "vocab_size": 256}
    for module in (passes, probe_cpu, probe_gpu):
        monkeypatch.setattr(module, "LARGE", {**passes.LARGE, **tiny})
        monkeypatch.setattr(passes, "SMALL", {**passes.SMALL, **tiny, "vocab_size": 1536})
    monkeypatch.setattr(probe_cpu, "_BUFFER", 4 << 20)
    monkeypatch.setattr(probe_gpu, "_BACK", 1 << 20)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (5 * 10**9, 8 * 10**9))
    monkeypatch.setattr(triton, "unavailable_reason", lambda: reason)


def test_measured_once_and_kept(measured: list[str]) -> None:
    assert probe.cached() is None
    first = probe.probe()
    assert measured == ["cpu"]
    assert (first.cpu, first.gpu, first.disk_bandwidth) == (LAPTOP.cpu, None, 1e9)
    assert probe.cached() is not None
    assert replace(probe.probe(), ram_free=first.ram_free) == first
    assert measured == ["cpu"]
    probe.probe(refresh=True)
    assert measured == ["cpu", "cpu"]


def test_free_memory_is_asked_for_each_time(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, None)
    monkeypatch.setattr(probe, "available_memory", lambda: 3 * 10**9)
    probe.probe()
    monkeypatch.setattr(probe, "available_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (10**9, 8 * 10**9))
    found = probe.cached()
    assert found is not None
    assert found.gpu is not None
    assert (found.ram_free, found.gpu.free) == (2 * 10**9, 10**9)


def change_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "cpu_name", lambda: "another")


def change_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "physical_cores", lambda: 77)


def change_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "reference")


def change_mixq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.importlib.metadata, "version", lambda name: "999")


def change_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "999")


def change_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "no compiler.")


@pytest.mark.parametrize("change", [change_cpu, change_cores, change_isa, change_mixq, change_torch, change_gpu])
def test_another_machine_is_measured_anew(measured: list[str], monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "portable")
    probe.probe()
    assert probe.cached() is not None
    assert callable(change)
    change(monkeypatch)
    assert probe.cached() is None


def test_a_gpu_that_can_be_used_at_last_is_measured(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "no compiler.")
    assert probe.probe().gpu is None
    pretend_gpu(monkeypatch, None)
    assert probe.probe().gpu is not None
    assert measured == ["cpu", "cpu", "gpu"]


def test_a_full_gpu_is_said_and_tried_again(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> GpuFigures:
        raise DoesNotFitError("It was budget 1.0 MB.")

    pretend_gpu(monkeypatch, None)
    works = probe.measure_gpu
    monkeypatch.setattr(probe, "measure_gpu", refuse)
    found = probe.probe()
    assert found.gpu is None
    assert found.versions[NOT_MEASURED] == "It was budget 1.0 MB."
    assert probe.cached() is None
    monkeypatch.setattr(probe, "measure_gpu", works)
    found = probe.probe()
    assert found.gpu == replace(LAPTOP.gpu, free=5 * 10**9)  # type: ignore[type-var]
    assert NOT_MEASURED not in found.versions
    assert probe.cached() is not None


def loads(monkeypatch: pytest.MonkeyPatch, now: float | None, measuring: float) -> None:
    """Other programs use this share of the processors, now and while measuring."""
    monkeypatch.setattr(probe, "current_load", lambda: now)
    monkeypatch.setattr(probe.Work, "of_others", lambda self, earlier: measuring)


@pytest.mark.parametrize(
    ("then", "now", "anew"),
    [(0.2, 0.0, False), (0.3, 0.25, False), (0.3, 0.2, True), (0.9, 0.5, False), (0.9, 0.4, True), (0.9, None, False)],
)
def test_a_disturbed_measurement_is_made_again_when_it_is_quieter(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, then: float, now: float | None, anew: bool
) -> None:
    loads(monkeypatch, 1.0, then)
    assert probe.probe().load == then
    loads(monkeypatch, now, 0.01)
    assert (probe.cached() is None) == anew
    assert probe.probe().load == (0.01 if anew else then)
    assert measured == ["cpu"] * (2 if anew else 1)
    assert Computer.read(paths.cache() / probe.FILE_NAME).load == (0.01 if anew else then)


def test_the_quieter_of_two_disturbed_measurements_is_kept(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads(monkeypatch, 1.0, 0.5)
    probe.probe()
    loads(monkeypatch, 0.1, 0.6)  # quiet at first, then not
    assert probe.probe().load == 0.5
    assert measured == ["cpu", "cpu"]
    assert probe.probe(refresh=True).load == 0.6  # asked for


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"x" * (2 << 20)])
def test_a_cache_that_cannot_be_read_is_measured_anew(measured: list[str], content: bytes) -> None:
    probe.probe()
    path = paths.cache() / probe.FILE_NAME
    path.write_bytes(content)
    assert probe.cached() is None
    probe.probe()
    assert measured == ["cpu", "cpu"]
    assert Computer.read(path).cpu == LAPTOP.cpu


def test_a_cache_that_cannot_be_written(measured: list[str]) -> None:
    paths.cache().parent.mkdir(parents=True, exist_ok=True)
    paths.cache().write_text("in the way")
    assert probe.probe().cpu == LAPTOP.cpu
    assert probe.cached() is None


def test_the_largest_shard_is_what_the_disk_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_LEAST", 1 << 20)
    model = paths.store() / "model"
    model.mkdir(parents=True)
    for name, size in (("a", 1 << 10), ("b", 2 << 20), ("c", 3 << 20)):
        (model / f"{name}.safetensors").write_bytes(b"1" * size)
    (model / "d.safetensors").symlink_to(tmp_path / "nowhere")
    assert probe._large_file() == model / "c.safetensors"
    (model / "b.safetensors").unlink()
    (model / "c.safetensors").unlink()
    library = probe._large_file()
    assert library is not None
    assert library.parent.name == "lib"
    monkeypatch.setattr(probe, "_LEAST", 1 << 50)
    assert probe._large_file() is None
    assert probe.disk_bandwidth() is None


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no direct reads here")
def test_the_disk_is_read_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"1" * (20 << 20))
    monkeypatch.setattr(probe, "_large_file", lambda: path)
    places = []

    def read(handle: int, buffers: list[bytearray], offset: int) -> int:
        places.append(offset)
        return len(buffers[0])

    monkeypatch.setattr(os, "preadv", read)
    direct = os.O_DIRECT
    monkeypatch.setattr(os, "O_DIRECT", 0)  # not every file system of a test machine has it
    rate = probe.disk_bandwidth()
    assert rate is not None
    assert rate > 0
    assert places == [0, 8 << 20]  # whole pieces only
    monkeypatch.setattr(probe, "_READ", 8 << 20)
    places.clear()
    probe.disk_bandwidth()
    assert places == [0]
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    assert probe.disk_bandwidth() is None
    monkeypatch.setattr(os, "O_DIRECT", direct)
    monkeypatch.setattr(probe, "_large_file", lambda: tmp_path / "nothing")
    assert probe.disk_bandwidth() is None


def test_figures_of_this_processor(small: None) -> None:
    figures = probe_cpu.measure_cpu()
    content = {**COMPUTERS["cpu-laptop"].as_dict(), "cpu": asdict(figures)}
    assert Computer.from_dict(content, "measured").cpu == figures
    assert figures.kernel_bandwidth <= figures.read_bandwidth


def test_figures_of_the_gpu_that_the_cpu_plays(small: None) -> None:
    figures = probe_gpu.measure_gpu("sim", vram=64 << 20, sim_bandwidth=50 * 10**6)
    content = {**LAPTOP.as_dict(), "gpu": asdict(figures)}
    assert Computer.from_dict(content, "measured").gpu == figures
    assert figures.memory == 64 << 20
    assert figures.pinned_limit is None  # it copies from any memory
    assert figures.copy_under_load <= figures.copy_bandwidth < 51e6  # noise only ever slows


def test_a_computer_while_it_plays_a_gpu(small: None) -> None:
    found = probe_gpu.simulated(COMPUTERS["cpu-laptop"], 3 * 10**9)
    assert found.gpu is not None
    assert (found.gpu.memory, found.gpu.free) == (3 * 10**9, 3 * 10**9)
    assert found.ram == COMPUTERS["cpu-laptop"].ram
    assert Computer.from_dict(found.as_dict(), "measured") == found


@pytest.mark.parametrize(
    ("taken", "free", "limit"), [(8, 64, None), (3, 64, 3), (0, 64, 0), (3, 4, None), (1, 0, None)]
)
def test_how_much_memory_can_be_locked(
    monkeypatch: pytest.MonkeyPatch, taken: int, free: int, limit: int | None
) -> None:
    step = probe_gpu._LOCKED_STEP
    asked = []

    def register(memory: torch.Tensor) -> bool:
        asked.append(memory.nbytes)
        return len(asked) <= taken

    monkeypatch.setattr(probe_gpu, "available_memory", lambda: free * step)
    found = probe_gpu.locked_limit(register)
    assert found == (None if limit is None else limit * step)
    assert sum(asked) <= min(4 << 30, free * step // 2)


def test_the_last_cache_before_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "2048K", "24M", "?")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(probe_cpu, "_CACHES", tmp_path)
    assert probe_cpu.last_level_cache() == 24 << 20
    monkeypatch.setattr(probe_cpu, "_CACHES", tmp_path / "nothing")
    assert probe_cpu.last_level_cache() == 0


def test_what_others_took_of_the_processor(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(load, "_STAT", stat)
    assert probe.probe().load is None
    tick = os.sysconf("SC_CLK_TCK")
    clock = iter((100.0, 110.0))
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(clock))
    own = iter((1.0, 6.0))
    monkeypatch.setattr(load.time, "process_time", lambda: next(own))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def meanwhile(*, refresh: bool = False) -> probe_cpu.CpuFigures:
        # user, nice, system, idle, iowait, irq, softirq, steal, guest: 9 busy seconds more, 5 of them our own
        stat.write_text(f"cpu {105 * tick} 1 2 {900 * tick} {50 * tick} 3 4 {5 + 4 * tick} 700\ncpu0 1\n")
        return LAPTOP.cpu

    stat.write_text(f"cpu {100 * tick} 1 2 {500 * tick} 0 3 4 5 600\ncpu0 1\n")
    monkeypatch.setattr(probe, "measure_cpu", meanwhile)
    assert probe.probe(refresh=True).load == pytest.approx(4 / 20)
