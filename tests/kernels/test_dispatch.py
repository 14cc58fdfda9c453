"""Which kernels are chosen, and what is said when they are not the fast ones."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import DoesNotFitError, UsageError
from mixq.kernels import dispatch, native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral

needs_library = pytest.mark.skipif(native_library.library() is None, reason="no native kernels here")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler here")


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MIXQ_CPU_ISA", raising=False)
    for cache in (native_library._find, dispatch._warn_once):
        cache.cache_clear()
    yield
    for cache in (native_library._find, dispatch._warn_once):
        cache.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is looked for: an empty folder."""
    monkeypatch.setattr(native_library, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setattr(native_library, "BUILD_LOG", tmp_path / "native_build.txt")
    return tmp_path


def write_library(package: Path, source: str) -> None:
    command = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(package / "_native.so")]
    subprocess.run(command, input=source, text=True, check=True)


@needs_library
def test_the_best_instruction_set_is_taken() -> None:
    kernels = dispatch.choose(threads=2)
    assert isinstance(kernels, NativeKernels)
    assert kernels.name == native_library.supported_isas()[-1]
    assert kernels.threads == 2
    assert native_library.unavailable_reason() is None


def test_exact_is_always_torch(capsys: pytest.CaptureFixture[str], package: Path) -> None:
    kernels = dispatch.choose(threads=1, exact=True)
    assert isinstance(kernels, dispatch.ReferenceKernels)
    assert kernels.exact
    assert capsys.readouterr().err == ""


@needs_library
@pytest.mark.parametrize("isa", native_library.supported_isas())
def test_an_instruction_set_that_is_asked_for(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", isa)
    assert dispatch.choose(threads=1).name == isa
    assert native_library.isa_name(native_library.isa()) == isa


def test_the_reference_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "reference")
    assert native_library.library() is None
    assert native_library.supported_isas() == []
    assert native_library.compiler() == "none"
    assert isinstance(dispatch.choose(threads=1), dispatch.ReferenceKernels)
    with pytest.raises(RuntimeError, match="MIXQ_CPU_ISA=reference"):
        NativeKernels(1)


@pytest.mark.parametrize(("asked", "meant"), [("avx-2", "avx2"), ("avx51", "avx512"), ("referense", "reference")])
def test_an_unknown_instruction_set_is_an_error_with_a_suggestion(
    asked: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", asked)
    with pytest.raises(UsageError, match=rf"must be one of portable, .*reference.*Did you mean '{meant}'"):
        dispatch.choose(threads=1)


def test_an_unknown_instruction_set_is_shown_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "\x1b[2J")
    with pytest.raises(UsageError) as error:
        dispatch.choose(threads=1)
    assert "\x1b" not in str(error.value)


@needs_library
def test_an_instruction_set_that_the_cpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    can = native_library.supported_isas()
    lacking = next(name for name in native_library.ISA_NAMES if name not in can)
    monkeypatch.setenv("MIXQ_CPU_ISA", lacking)
    with pytest.raises(UsageError, match=f"{lacking}, which this CPU does not have") as error:
        dispatch.choose(threads=1)
    assert ", ".join(can) in str(error.value.hint)


def test_slow_kernels_are_told_of_once(capsys: pytest.CaptureFixture[str], package: Path) -> None:
    (package / "native_build.txt").write_text("no such file: c++\nsecond line\n")
    for _ in range(3):
        assert isinstance(dispatch.choose(threads=1), dispatch.ReferenceKernels)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no such file: c++" in err
    assert "mixq doctor" in err
    assert "second line" not in err


def test_no_library(package: Path) -> None:
    assert native_library.unavailable_reason() == "The native library was not built when mixq was installed."


def test_a_build_that_failed_is_told_with_the_compilers_words(package: Path) -> None:
    (package / "native_build.txt").write_text("decode.cpp:3: error: \x1b[1mno\n")
    reason = native_library.unavailable_reason()
    assert reason is not None
    assert "decode.cpp:3: error" in reason
    assert "\x1b" not in reason


def test_an_unreadable_library(package: Path) -> None:
    (package / "_native.so").write_bytes(b"not a library")
    assert "cannot be loaded" in str(native_library.unavailable_reason())


@needs_compiler
def test_a_library_of_another_version(package: Path) -> None:
    write_library(package, 'extern "C" int mixq_abi_version() { return 99; }')
    assert f"interface version 99, not {native_library.ABI_VERSION}" in str(native_library.unavailable_reason())


@needs_compiler
@pytest.mark.parametrize(
    "source", ["", f'extern "C" int mixq_abi_version() {{ return {native_library.ABI_VERSION}; }}']
)
def test_a_library_without_our_functions(package: Path, source: str) -> None:
    write_library(package, source)
    assert "cannot be loaded" in str(native_library.unavailable_reason())


@needs_library
def test_threads_that_the_system_refuses() -> None:
    for threads in (0, -1):
        with pytest.raises(DoesNotFitError, match=f"{threads} threads for the CPU kernels could not"):
            NativeKernels(threads)


@needs_library
def test_the_structures_are_as_large_as_in_c(tmp_path: Path) -> None:
    """ctypes lays fields out as the platform's C compiler does, provided that the fields are the same."""
    if shutil.which("c++") is None:
        pytest.skip("no compiler here")
    headers = Path(native_library.__file__).with_name("native")
    source = '#include <cstddef>\n#include <cstdio>\n#include "api.h"\nint main() {\n'
    structures = {"MixqMatrix": native_library.Matrix, "MixqKvCache": native_library.KVCache}
    for name, structure in structures.items():
        for field, *_ in structure._fields_:
            source += f'std::printf("%zu ", offsetof({name}, {field}));\n'
        source += f'std::printf("%zu\\n", sizeof({name}));\n'
    program = tmp_path / "sizes"
    command = ["c++", "-x", "c++", "-", "-I", str(headers), "-o", str(program)]
    subprocess.run(command, input=source + "}\n", text=True, check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    for line, structure in zip(lines, structures.values(), strict=True):
        offsets = [getattr(structure, field).offset for field, *_ in structure._fields_]
        assert [int(number) for number in line.split()] == [*offsets, ctypes.sizeof(structure)]


def logits(folder: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Load the model as a user does who sets MIXQ_CPU_ISA, and return logits of a short prompt and of decode steps."""
    monkeypatch.setenv("MIXQ_CPU_ISA", isa)
    model = mixq.load(folder, threads=2)
    assert model.kernels.name == isa
    cache = model.new_kv_cache()
    return torch.cat([model.forward(chunk, kv_cache=cache) for chunk in (list(range(1, 7)), [9], [17], [33, 2])])


@needs_library
def test_a_model_answers_alike_with_every_instruction_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_mixtral(tmp_path / "source", seed=1)
    quantize(tmp_path / "source", tmp_path / "nl4", format="nl4")
    isas = native_library.supported_isas()
    expected = logits(tmp_path / "nl4", "reference", monkeypatch)
    for isa in isas:
        out = logits(tmp_path / "nl4", isa, monkeypatch)
        assert float((out - expected).norm() / expected.norm()) < 1e-3, isa


@needs_library
def test_the_environment_is_heeded_from_the_start(tmp_path: Path) -> None:
    """In a process of its own, as a user starts it."""
    for isa in ("portable", "reference"):
        out = subprocess.run(
            [sys.executable, "-c", "from mixq.kernels.dispatch import choose; print(choose(threads=1).name)"],
            env={**os.environ, "MIXQ_CPU_ISA": isa},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == isa


def test_a_call_that_fails_raises() -> None:
    """The library's calls return 1 when memory runs out."""
    with pytest.raises(DoesNotFitError, match="Not enough memory for the CPU kernels"):
        native_library._failed(1, None, None)
    native_library._failed(0, None, None)
