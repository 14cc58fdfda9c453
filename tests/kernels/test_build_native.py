"""Building the native library: what a missing or failing compiler leaves behind, and what is compiled again."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution, Extension

from mixq.kernels import build_native
from mixq.kernels.build_native import BuildNative, build

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler here")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources and two headers, one of which both include."""
    for name in ("CXX", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "export.h").write_text('#define EXPORT extern "C" __attribute__((visibility("default")))\n')
    (folder / "number.h").write_text('#include "export.h"\nconstexpr int kNumber = 1;\n')
    (folder / "number.cpp").write_text('#include "number.h"\nEXPORT int number() { return kNumber; }\n')
    (folder / "other.cpp").write_text('#include "export.h"\nEXPORT int other() { return 7; }\n')
    return folder


def install(sources: Path) -> Path:
    """Run setuptools' command and return the folder of the library."""
    extension = Extension("mixq.kernels._native", [str(sources / "number.cpp")], optional=True)
    command = BuildNative(Distribution({"ext_modules": [extension]}))
    command.build_lib, command.build_temp = str(sources.parent / "lib"), str(sources.parent / "temp")
    command.ensure_finalized()
    command.run()
    return sources.parent / "lib" / "mixq" / "kernels"


@needs_compiler
def test_every_source_is_in_the_library(sources: Path) -> None:
    folder = install(sources)
    (library,) = folder.glob("_native*.so")
    loaded = ctypes.CDLL(str(library))
    assert (loaded.number(), loaded.other()) == (1, 7)
    assert [path.name for path in folder.iterdir()] == [library.name]


def test_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    folder = install(sources)
    assert [path.name for path in folder.iterdir()] == ["native_build.txt"]
    assert "/nonexistent/c++" in (folder / "native_build.txt").read_text()
    assert "torch's will be used" in capfd.readouterr().err


@needs_compiler
def test_a_compiler_that_fails(sources: Path) -> None:
    folder = install(sources)
    (sources / "other.cpp").write_text("nonsense;\n")
    install(sources)
    assert [path.name for path in folder.iterdir()] == ["native_build.txt"]  # nor the library of the build before
    assert "nonsense" in (folder / "native_build.txt").read_text()
    (sources / "other.cpp").write_text("")
    install(sources)
    assert not (folder / "native_build.txt").exists()


def test_windows_takes_torch(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    extension = Extension("mixq.kernels._native", [str(sources / "number.cpp")], optional=True)
    command = BuildNative(Distribution({"ext_modules": [extension]}))
    with pytest.raises(OSError, match="Windows"):
        command._build(extension, sources.parent / "_native.so")


@needs_compiler
def test_only_what_changed_is_compiled_again(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, library = sources.parent / "objects", sources.parent / "_native.so"

    def again() -> int:
        return build(sources, objects, library, again=False)

    assert [again(), again()] == [2, 0]
    (sources / "other.cpp").touch()
    assert again() == 1
    (sources / "number.h").write_text('#include "export.h"\nconstexpr int kNumber = 2;\n')
    assert again() == 1
    assert ctypes.CDLL(str(library)).number() == 2
    (sources / "export.h").touch()
    assert again() == 2
    (sources / "number.cpp").write_text('#include "export.h"\nEXPORT int number() { return 3; }\n')
    (sources / "number.h").unlink()
    assert [again(), again()] == [1, 0]
    monkeypatch.setenv("CXXFLAGS", "-DOTHER")
    assert again() == 2
    assert build(sources, objects, library) == 2


@needs_compiler
def test_a_library_in_use_is_replaced_not_written_over(sources: Path) -> None:
    library = sources.parent / "_native.so"
    build(sources, sources.parent / "objects", library)
    inode = library.stat().st_ino
    build(sources, sources.parent / "objects", library)
    assert library.stat().st_ino != inode


def test_the_flags_are_told_without_building() -> None:
    command = [sys.executable, build_native.__file__, "--flags"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == list(
        build_native.FLAGS
    )
