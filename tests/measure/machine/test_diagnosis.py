"""What `mixq doctor` knows: the machine as it is, and kernels that are wrong or missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixq.errors import UsageError
from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.machine.diagnosis import diagnose
from mixq.system import cores, paths

needs_library = pytest.mark.skipif(native_library.library() is None, reason="the native library was not built")


@needs_library
def test_native_kernels_are_named_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXQ_CPU_ISA", raising=False)
    found = diagnose()
    assert found.kernels_right
    assert found.isa == found.isas[-1]
    assert not found.isa_forced
    assert found.native_library is not None
    assert Path(found.native_library).is_file()
    assert found.compiler
    assert 1 <= found.cores <= found.logical_cpus


@needs_library
def test_an_instruction_set_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "portable")
    found = diagnose()
    assert (found.isa, found.isa_forced, found.kernels_right) == ("portable", True, True)
    monkeypatch.setenv("MIXQ_CPU_ISA", "potable")
    with pytest.raises(UsageError, match="Did you mean 'portable'"):
        diagnose()


def test_the_reference_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "reference")
    found = diagnose()
    assert (found.isa, found.kernels_right, found.native_library) == ("reference", True, None)
    assert found.native_reason is not None


@needs_library
def test_kernels_that_compute_wrongly_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NativeKernels.linear
    kernels = NativeKernels
    monkeypatch.setattr(kernels, "linear", lambda self, x, weight: whole(self, x, weight) * 1.001)
    assert not diagnose().kernels_right
    monkeypatch.setattr(NativeKernels, "linear", lambda self, x, weight: whole(self, x, weight) * torch.nan)
    assert not diagnose().kernels_right


def test_models_in_the_store(mixq_home: Path) -> None:
    assert diagnose().models == ()
    for name in ("b", "a"):
        (paths.store() / name).mkdir(parents=True)
    (paths.store() / "file").touch()
    found = diagnose()
    assert found.models == ("a", "b")
    assert found.store == str(mixq_home / "models")


def test_cpu_of_an_arm_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nFeatures\t: fp asimd evtstrm asimddp i8mm\n\nprocessor\t: 1\nFeatures\t: fp\n")
    monkeypatch.setattr(cores, "_CPU_INFO", info)
    assert diagnose().features == ("asimd", "asimddp", "i8mm")
    info.unlink()
    assert diagnose().features == ()
